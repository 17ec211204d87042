"""The command `resume`: continue an interrupted run with the options that are stored beside its checkpoints."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from loraprune.config.commands import ResumeConfig
from loraprune.config.training import FinetuneConfig, PruneConfig
from loraprune.errors import ConfigError
from loraprune.pipeline import finetune, prune
from loraprune.reporting.report import Report
from loraprune.runtime.run_file import read_run


def resume(options: ResumeConfig) -> Report:
    """Continue a run from its newest complete checkpoint, or from the start if it has none.

    Raises:
        ConfigError: if another version of this package stored options that this one does not know.
        LoraPruneError: as `prune`.
    """
    config = stored_config(options.output)
    return prune(config) if isinstance(config, PruneConfig) else finetune(config)


def stored_config(output: str) -> PruneConfig | FinetuneConfig:
    """Return the options of the interrupted run of an output folder, set to resume it."""
    job, stored = read_run(Path(output))
    kind: type[PruneConfig | FinetuneConfig] = PruneConfig if job == "prune" else FinetuneConfig
    unknown = sorted(stored.keys() - {one.name for one in fields(kind)})
    if unknown:
        raise ConfigError(
            f"resume {output}: the run was started by another version of loraprune (unknown options: {', '.join(unknown)}); resume it "
            "with that version"
        )
    return kind(**{**stored, "output": output, "resume": True})
