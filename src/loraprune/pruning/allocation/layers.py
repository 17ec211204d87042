"""Removal of whole layers: what remains to be removed from the others, for every number of removed layers.

Knows nothing about where scores come from.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from loraprune.groups import layer_of
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
    removed, empty = ratio * space.budget.prunable, {group.name: 0 for group in space.groups}

    def storable(counts: Counts) -> bool:
        return space.storable({**empty, **counts})

    for number in range(len(begun), len(order)):
        gone = set(order[:number])
        left = tuple(group for group in space.groups if layer_of(group) not in gone)
        each = {group.name: space.budget.unit_parameters[group.name] for group in left}
        budget = Budget(each, {group.name: group.units for group in left})
        owned = space.budget.prunable - budget.prunable
        lost = sum(totals[layer] for layer in gone)
        yield replace(space, groups=left, budget=budget, storable=storable), (removed - owned) / budget.prunable, lost
