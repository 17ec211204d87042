"""Which size a comparison recommends: on every curve of recipes that differ in the target only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from loraprune.commands.compare.grid import SEED, recipe_name
from loraprune.commands.compare.summary import metric_of
from loraprune.config.target import TARGETS
from loraprune.evaluation.measurement import PERPLEXITY
from loraprune.reporting.knee import Point, advise, unit_of
from loraprune.reporting.verdict import find_verdict


def recommend(entries: Sequence[Mapping[str, Any]], recipes: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return curve -> which of its recipes is the knee and which is recommended, and why; a curve has two sizes or more.

    Losses are gaps. The dense model is a part of a curve if it was tuned alike, or if nothing was trained.
    """
    done = {one["recipe"]: one for one in entries if "error" not in one}
    metric, curves = metric_of(entries), dict[str, dict[str, Any]]()
    for name, values in recipes.items():
        if values["job"] == "prune" and values["gap"]:
            curves.setdefault(without_target(values["labels"]), {})[name] = values
    found = {}
    for curve, members in curves.items():
        points = [
            Point(name, each["parameters"], each["gap"]["mean"], _is_usable(metric, each)) for name, each in members.items()
        ]  # fmt: skip
        if len({point.parameters for point in points}) > 1:
            start = _dense_point(done[points[0].name])
            found[curve] = asdict(advise(points, start=start, unit=unit_of(metric)))
    return found


def without_target(labels: Mapping[str, str]) -> str:
    """Return the name of a recipe without the amount that it removes."""
    return (
        recipe_name({axis: words for axis, words in labels.items() if axis not in ("ratio", *TARGETS, SEED)})
        or "pruned"
    )


def _dense_point(entry: Mapping[str, Any]) -> tuple[float, float] | None:
    """Return parameters and gap of the dense model that a cell is compared with, if it was trained as the cell was."""
    is_alike = entry["baseline"] is not None or entry["options"]["steps"] == 0
    return (float(entry["parameters"]["dense"]), 0.0) if is_alike else None


def _is_usable(metric: str, values: Mapping[str, Any]) -> bool:
    """Return whether the mean of a recipe would have the verdict usable beside the model that its gap refers to."""
    value, gap = values[metric]["mean"], values["gap"]["mean"]
    reference = value / math.exp(gap) if metric == PERPLEXITY else value + gap
    return find_verdict("prune", metric, reference, value, new_head=False).is_good
