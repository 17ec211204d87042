"""Options of an unfinished run, stored beside its checkpoints so that `loraprune resume` needs only the name of the output.

Imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loraprune.runtime.atomic import replace_text
from loraprune.runtime.output import PARTIAL, holds_result

RUN = "run.json"
"""file in OUTPUT.partial with the job and all options of the run"""


def write_run(workspace: Path, job: str, options: Mapping[str, Any]) -> None:
    """Store the options of a run in its workspace."""
    replace_text(workspace / RUN, json.dumps({"job": job, "options": dict(options)}, indent=1) + "\n")


def read_run(output: Path) -> tuple[str, dict[str, Any]]:
    """Return the job and the options of the unfinished run of an output folder.

    Raises:
        OSError: if there is none.
        ValueError: if the file is damaged.
    """
    values = json.loads(_file(output).read_text(encoding="utf-8"))
    if not isinstance(values, dict) or values.get("job") not in ("prune", "finetune"):
        raise ValueError("it names no job")
    if not isinstance(values.get("options"), dict):
        raise ValueError("it holds no options")
    return values["job"], values["options"]


def run_problem(output: str) -> str | None:
    """Return in one sentence why an output folder has no run to resume; None if it has one."""
    if not output:
        return "--output is empty: name the output folder of the interrupted run"
    folder = Path(output)
    try:
        read_run(folder)
    except OSError:
        if holds_result(folder):
            return f"resume {output}: its run has finished, so nothing is left to resume"
        return (
            f"resume {output}: no interrupted run found ({_file(folder)} does not exist); check the name, or start the run again with "
            "`loraprune prune`"
        )
    except ValueError as error:
        return f"resume {output}: {_file(folder)} is damaged ({error}); give the original command with --resume"
    return None


def _file(output: Path) -> Path:
    return output.with_name(output.name + PARTIAL) / RUN
