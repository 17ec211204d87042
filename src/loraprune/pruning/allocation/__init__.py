"""Allocations: from a target, the scores and the progress to a number of units for every group.

Knows nothing about tensors; ratios are counted in real parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from loraprune.pruning.allocation.balanced import balanced_counts, splits
from loraprune.pruning.allocation.coupled import reach_coupled
from loraprune.pruning.allocation.exact import exact_counts, widths_left
from loraprune.pruning.allocation.layers import keep_layers, most_layers, without_layers
from loraprune.pruning.allocation.paper import paper_counts
from loraprune.pruning.allocation.ranked import ranked_counts
from loraprune.pruning.allocation.space import Counts, Scores, Space, Storable
from loraprune.pruning.allocation.uniform import uniform_counts

__all__ = [
    "ALLOCATIONS",
    "Allocation",
    "Counts",
    "Scores",
    "Space",
    "Storable",
    "exact_counts",
    "keep_layers",
    "most_layers",
    "reach",
    "splits",
    "towards",
    "widths_left",
    "without_layers",
]


@dataclass(frozen=True, slots=True)
class Allocation:
    """A way to distribute removal over the groups."""

    counts: Callable[[Space, float, Scores], dict[str, int]]
    """space, ratio, scores of the present units -> units that every group keeps in the end"""
    equal: bool
    """whether all layers end with the same widths, so that a stock checkpoint can hold them"""
    scored: bool
    """whether it uses the scores: then the final counts are computed again at each removal"""


ALLOCATIONS = {
    "uniform": Allocation(lambda space, ratio, _: uniform_counts(space, ratio), equal=True, scored=False),
    "measured": Allocation(lambda space, ratio, _: uniform_counts(space, ratio), equal=True, scored=False),
    "searched": Allocation(lambda space, ratio, _: uniform_counts(space, ratio), equal=True, scored=False),
    "balanced": Allocation(balanced_counts, equal=True, scored=True),
    "paper": Allocation(lambda space, ratio, _: paper_counts(space, ratio), equal=False, scored=False),
    "global": Allocation(ranked_counts, equal=False, scored=True),
}


def reach(space: Space, allocation: Allocation, ratio: float, scores: Scores) -> dict[str, int]:
    """Return the counts by which an allocation reaches a ratio of the prunable parameters.

    Raises:
        PlanError: if it cannot.
    """
    if not space.budget.shared:
        return allocation.counts(space, ratio, scores)
    return reach_coupled(space, lambda linear, nominal: allocation.counts(linear, nominal, scores), ratio)


def towards(space: Space, final: Counts, progress: float) -> dict[str, int]:
    """Return the counts on the way from the dense model to `final`, never below it.

    FFN widths on the way are multiples of the rounding step too: matrix products of other widths are slow.
    """
    counts = {}
    for group in space.groups:
        due = group.units - round((group.units - final[group.name]) * progress)
        step = space.step(group) if progress < 1 else 1
        # A layer that is to go keeps a little of each kind until it goes as a whole.
        least = step if progress < 1 else 0
        counts[group.name] = min(group.units, max(least, -(-due // step) * step))
    return counts
