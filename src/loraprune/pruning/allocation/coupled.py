"""Ratios where groups share weights: a kernel between two groups loses rows with one and columns with the other.

Every allocation counts what each unit owns in the dense model. Where that is counted twice, the ratio it is asked for is varied
until what really goes is what was wanted; then single stages are widened or narrowed by a step as long as that is nearer.
Knows nothing about scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from loraprune.errors import PlanError
from loraprune.groups import Group
from loraprune.plan import Budget
from loraprune.pruning.allocation.space import Counts, Space

HALVINGS = 24
CLOSE = 0.01
"""how far below a ratio the narrowest widths of all may end"""


def reach_coupled(space: Space, counts: Callable[[Space, float], dict[str, int]], ratio: float) -> dict[str, int]:
    """Return the counts whose true ratio is the nearest to `ratio`; `counts` allocates as if no weights were shared.

    Raises:
        PlanError: if even the largest ratio that can be had is too small.
    """
    linear = replace(space, budget=Budget(space.budget.unit_parameters, space.budget.units))
    low, high = 0.0, 1.0
    best: tuple[float, dict[str, int]] | None = None
    refused = None
    for _ in range(HALVINGS):
        nominal = (low + high) / 2
        try:
            found = counts(linear, nominal)
        except PlanError as error:
            refused, high = error, nominal
            continue
        reached = space.budget.ratio(found)
        if best is None or abs(reached - ratio) < abs(best[0] - ratio):
            best = reached, found
        low, high = (nominal, high) if reached < ratio else (low, nominal)
    if best is None:
        raise refused or PlanError(f"--ratio {ratio}: this model has no such widths")
    found = refine(space, best[1], ratio)
    reached = space.budget.ratio(found)
    narrower = (move(space, found, tie, -1) for tie in tied(space.groups))
    if reached + CLOSE < ratio and not any(change and space.storable(change) for change in narrower):
        raise PlanError(
            f"--ratio {ratio}: at most {reached:.4f} of the prunable parameters can be removed from this model"
        )
    return found


def refine(space: Space, counts: Counts, ratio: float) -> dict[str, int]:
    """Return counts with groups that must go together, as they share keys of the configuration, moved by steps towards a ratio."""
    chosen, ties = dict(counts), list(tied(space.groups))
    while True:
        moved = [change for tie in ties for sign in (-1, 1) if (change := move(space, chosen, tie, sign))]
        storable = [change for change in moved if space.storable(change)]
        nearest = min(storable, key=lambda change: abs(space.budget.ratio(change) - ratio), default=chosen)
        if abs(space.budget.ratio(nearest) - ratio) >= abs(space.budget.ratio(chosen) - ratio):
            return chosen
        chosen = nearest


def tied(groups: Sequence[Group]) -> Iterator[tuple[Group, ...]]:
    """Yield the groups of one kind that share keys of the configuration, directly or through others; one without keys alone."""
    left = list(groups)
    while left:
        tie, keys = [left.pop(0)], set[str]()
        while True:
            keys |= {key for group in tie for key in group.sizes}
            joined = [group for group in left if group.kind == tie[0].kind and keys & set(group.sizes)]
            if not joined:
                break
            tie += joined
            left = [group for group in left if group not in joined]
        yield tuple(tie)


def move(space: Space, counts: Counts, tie: Sequence[Group], sign: int) -> dict[str, int] | None:
    """Return counts with every group of a tie wider or narrower by a step, in proportion; None where there is no room."""
    narrowest = min(group.units for group in tie)
    step = space.step(tie[0])
    changed = {group.name: counts[group.name] + sign * step * group.units // narrowest for group in tie}
    room = all(step <= changed[group.name] <= group.units for group in tie)
    return {**counts, **changed} if room else None
