"""Removal of whole layers: what remains to be removed from the others, and how many layers can go.

Knows nothing about where scores come from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate

from loraprune.errors import PlanError
from loraprune.groups import layer_of, layer_path
from loraprune.plan import Budget
from loraprune.pruning.allocation.space import Counts, Scores, Space


def fewer_layers(space: Space, ratio: float, scores: Scores) -> Iterator[tuple[Space, float, float]]:
    """Yield for every number of layers that can go the space of the others, their ratio, and the score that is lost.

    Layers with the lowest total score are removed first. A layer that already has fewer units than others is removed first of all: what
    it lost does not come back.
    """
    totals: dict[str | None, float] = {}
    begun: set[str | None] = set()
    for groups in space.by_kind().values():
        widest = max(len(scores[group.name]) for group in groups)
        for group in groups:
            layer = layer_of(group)
            totals[layer] = totals.get(layer, 0.0) + sum(scores[group.name])
            if len(scores[group.name]) < widest:
                begun.add(layer)
    order = sorted(totals, key=lambda layer: (layer not in begun, totals[layer]))
    for number in range(len(begun), len(order)):
        gone = order[:number]
        yield *without_layers(space, gone, ratio), sum(totals[layer] for layer in gone)


def without_layers(space: Space, gone: Collection[str | None], ratio: float) -> tuple[Space, float]:
    """Return the space of the layers left, and the ratio of their parameters that is still to be removed, below 0 if too many go."""
    empty = {group.name: 0 for group in space.groups}
    left = tuple(group for group in space.groups if layer_of(group) not in gone)
    each = {group.name: space.budget.unit_parameters[group.name] for group in left}
    budget = Budget(each, {group.name: group.units for group in left})
    owned = space.budget.prunable - budget.prunable

    def storable(counts: Counts) -> bool:
        return space.storable({**empty, **counts})

    still = (ratio * space.budget.prunable - owned) / budget.prunable
    return replace(space, groups=left, budget=budget, storable=storable), still


def most_layers(space: Space, ratio: float) -> int:
    """Return how many layers can go without more than `ratio` of the parameters, to within half a rounding step; one layer stays."""
    owned: Counter[str | None] = Counter()
    for group in space.groups:
        owned[layer_of(group)] += space.budget.unit_parameters[group.name] * group.units
    room = (ratio + space.half_step()) * space.budget.prunable
    return min(len(owned) - 1, sum(total <= room for total in accumulate(sorted(owned.values()))))


def keep_layers(space: Space, counts: Counts, layers: int, order: Sequence[str] | None = None) -> dict[str, int]:
    """Return counts with which `layers` layers stay: the first of `order` keep nothing, or the last of the model without an order.

    Raises:
        PlanError: if the model has fewer layers.
    """
    every = list(dict.fromkeys(layer for group in space.groups if (layer := layer_of(group))))
    if layers > len(every):
        raise PlanError(f"--layers {layers}: this model has {len(every)} layers; choose 1 to {len(every)}")
    gone = (every[::-1] if order is None else order)[: len(every) - layers]
    return {name: 0 if layer_path(name) in gone else count for name, count in counts.items()}
