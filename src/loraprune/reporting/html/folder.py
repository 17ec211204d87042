"""What the page of a run is made of: the files in its folder.

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
from loraprune.reporting.report import NAME, Report, read_report

EVALUATION = "evaluation.json"
"""what `evaluate --record` leaves in a folder"""


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
    """what `evaluate` found later; empty if it was not asked"""


def read_run(folder: Path) -> Run:
    """Read what a run wrote.

    Raises:
        CheckpointError: if it is no folder of a run, or a file is torn.
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
        raise CheckpointError(f"{str(folder)!r}: a file of the run is torn ({error}); run it again") from None


def units_of(report: Report) -> Mapping[str, Mapping[str, int]]:
    """Return group -> `dense` and `kept`; empty where no units were removed."""
    return report.removed.units or {} if report.removed else {}


def parts(groups: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return part of a layer -> row label -> group, in order: `mlp` -> `3` -> `model.layers.3.mlp`.

    A label is what tells a group's path from those of the same part.
    """
    by_part: dict[str, list[list[str]]] = {}
    for group in groups:
        by_part.setdefault(group.rpartition(".")[2], []).append(group.split("."))
    found: dict[str, dict[str, str]] = {}
    for part, paths in by_part.items():
        width = min(len(path) for path in paths)
        varying = [place for place in range(width) if len({path[place] for path in paths}) > 1]
        for path in paths:
            label = " ".join(path[place] for place in varying) or part
            found.setdefault(part, {})[label] = ".".join(path)
    return found
