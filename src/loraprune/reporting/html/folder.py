"""Read the files of a run that its page shows.

Knows nothing about HTML or plots.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from loraprune.errors import CheckpointError
from loraprune.pruning.removed import Units
from loraprune.reporting.report import NAME, Report, read_report

EVALUATION = "evaluation.json"
"""written by `evaluate --record`"""


@dataclass(frozen=True, slots=True)
class Run:
    """The files of a run's folder."""

    report: Report
    recipe: str
    """the text of run.yaml"""
    kept: Mapping[str, Sequence[int]]
    """group -> units left; empty where none were removed"""
    scores: Mapping[str, Sequence[float]]
    """group -> last score of every unit of the dense model"""
    evaluation: Mapping[str, Any]
    """figures of a later `evaluate --record`; empty if it was not run"""


def read_run(folder: Path) -> Run:
    """Read what a run wrote.

    Raises:
        CheckpointError: if the folder is not that of a run, or a file is damaged.
    """
    if not (folder / NAME).is_file():
        raise CheckpointError(f"no report.json in {str(folder)!r}: name a folder that `prune` or `finetune` wrote")
    evaluation, scores, recipe = folder / EVALUATION, folder / "scores.safetensors", folder / "run.yaml"
    try:
        report = read_report(folder)
        found = load_file(scores) if scores.is_file() else {}
        return Run(
            report=report,
            recipe=recipe.read_text(encoding="utf-8") if recipe.is_file() else "",
            kept=report.plan.kept if report.plan else {},
            scores={name: found[name].tolist() for name in units_of(report) if name in found},  # in the model's order
            evaluation=json.loads(evaluation.read_text(encoding="utf-8")) if evaluation.is_file() else {},
        )
    except (ValueError, SafetensorError) as error:
        raise CheckpointError(f"{str(folder)!r}: a file of the run is damaged ({error}); run it again") from None


def units_of(report: Report) -> Mapping[str, Units]:
    """Return group -> its units; empty where no units were removed."""
    return report.removed.units or {} if report.removed else {}
