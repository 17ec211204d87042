"""Equal widths in all layers, heads and channels by the same ratio: what every stock checkpoint and engine can hold.

Knows nothing about scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

from loraprune.errors import PlanError
from loraprune.groups import Kind
from loraprune.pruning.allocation.space import Space


def uniform_counts(space: Space, ratio: float) -> dict[str, int]:
    """Return equal widths for all layers that remove `ratio` of the prunable parameters.

    Heads stay as near to the ratio as whole key-value heads allow, and the FFN fills what they leave, so that the
    ratio is met to within half a rounding step of the FFN.

    Raises:
        PlanError: if more is asked for than can be removed.
    """
    kinds = space.narrowest()
    options = [[(kind, width) for width in space.widths(group)] for kind, group in kinds.items()]
    coarse, fine = _split(options)
    best: tuple[float, float, dict[str, int]] | None = None
    largest, half_step = 0.0, space.half_step()
    for choice in product(*coarse):
        fixed = dict(choice)
        for width in _around(space, fixed, fine, ratio):
            counts = space.spread(fixed | dict([width] if width else []))
            if not space.storable(counts):
                continue
            reached = space.budget.ratio(counts)
            largest = max(largest, reached)
            near = sum(abs(1 - count / kinds[kind].units - ratio) for kind, count in fixed.items())
            error = abs(reached - ratio)
            key = (0.0 if error <= half_step else error, near)
            if best is None or key < best[:2]:
                best = (*key, counts)
    if best is None or ratio > largest + half_step:
        raise PlanError(
            f"--ratio {ratio}: at most {largest:.4f} of the prunable parameters can be removed from this model"
        )
    return best[2]


Choices = list[list[tuple[Kind, int]]]


def _split(options: Choices) -> tuple[Choices, list[tuple[Kind, int]]]:
    """Separate the finest-grained kind, which fills, from the others."""
    finest = max(range(len(options)), key=lambda i: len(options[i]))
    return [option for i, option in enumerate(options) if i != finest], options[finest]


def _around(
    space: Space, fixed: Mapping[Kind, int], fine: Sequence[tuple[Kind, int]], ratio: float
) -> list[tuple[Kind, int]]:
    """Return the two widths of the filling kind that enclose the ratio, and the narrowest one to know the limit."""
    ratios = space.ratios(fixed, fine)
    wide_enough = next((i for i, found in enumerate(ratios) if found <= ratio), len(fine) - 1)
    return [fine[i] for i in sorted({0, max(0, wide_enough - 1), wide_enough})]
