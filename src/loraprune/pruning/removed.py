"""Figures of a run's removal."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

from loraprune.config.pruning import LoRAPruneConfig
from loraprune.groups import Group
from loraprune.plan import Budget, Plan

SHORT = 0.2
"""fraction of --ratio by which a shape may fall short without a warning"""

logger = logging.getLogger(__name__)


class Units(TypedDict):
    """The units of one group."""

    kind: NotRequired[str]
    """the group's kind, such as `attention`; missing in reports of the first versions"""
    dense: int
    kept: int


@dataclass(frozen=True, slots=True)
class Zeros:
    """Single weights that were set to zero, as counted in the saved files."""

    pattern: str
    ratio_requested: float
    ratio_reached: float
    zeros: int
    weights: int


@dataclass(frozen=True, slots=True)
class Removed:
    """The removed share of the prunable parameters."""

    ratio_requested: float | None
    """None where a number of parameters or widths were asked for, which `target` has"""
    ratio_reached: float
    prunable_dense: int
    prunable_pruned: int
    target: Mapping[str, Any] | None = None
    units: Mapping[str, Units] | None = None
    """group -> its units; None where single weights were zeroed"""
    reached: Mapping[str, Any] | None = None
    """what a target in bytes or seconds came to, see `loraprune.pruning.currencies`"""
    recovery: Sequence[Mapping[str, Any]] = ()
    """loss before and after every removal, and what recovery gained"""
    shapes: Mapping[str, Any] | None = None
    """the shapes that --allocation searched tried, and why one was kept, see `loraprune.pruning.shapes`"""
    sparsity: Zeros | None = None


def units_removed(
    config: LoRAPruneConfig,
    budget: Budget,
    prunable: int,
    groups: Sequence[Group],
    plan: Plan,
    recovery: Sequence[Mapping[str, Any]],
    reached: Mapping[str, Any],
    shapes: Mapping[str, Any] | None,
) -> Removed:
    """Return what the report says about units that were removed by a plan: what its target came to, and `recovery` of every removal.

    Ratios refer to `prunable` parameters, as the target does, whichever units were chosen; `budget` is that of the units.
    """
    counts = {name: len(kept) for name, kept in plan.kept.items()}
    left = prunable - (budget.prunable - budget.kept(counts))
    ratio = 1 - left / prunable
    if config.has_ratio and config.ratio - ratio > SHORT * config.ratio:
        logger.warning(
            "--ratio %g: only %.4f is reached, because units of this model go in large steps; a smaller --round than %d, or other "
            "--kinds, may come closer", config.ratio, ratio, config.round,
        )  # fmt: skip
    return Removed(
        ratio_requested=config.ratio if config.has_ratio else None, ratio_reached=ratio, prunable_dense=prunable,
        prunable_pruned=left, target=config.other_targets, reached=reached,
        units={
            group.name: {"kind": group.kind, "dense": plan.units[group.name], "kept": counts[group.name]} for group in groups
        },
        recovery=recovery, shapes=shapes,
    )  # fmt: skip
