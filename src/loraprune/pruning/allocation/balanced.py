"""Allocation from scores that a stock checkpoint can hold: equal widths in all layers, the split between kinds free.

Knows nothing about where scores come from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, product

from loraprune.errors import PlanError
from loraprune.groups import Kind
from loraprune.pruning.allocation.layers import fewer_layers
from loraprune.pruning.allocation.space import Scores, Space, lowest_first


def balanced_counts(space: Space, ratio: float, scores: Scores) -> dict[str, int]:
    """Return the equal widths that remove `ratio` of the prunable parameters at the least loss of score.

    Among all splits between heads and channels that meet the ratio to within half a rounding step, the one whose removed
    units score least in sum wins. Only units that have a score can be kept. Where the space lets layers go, every number of
    them is tried: the layers left share what is still to be removed.

    Raises:
        PlanError: if no split removes as much.
    """
    options = fewer_layers(space, ratio, scores) if space.layers else [(space, ratio, 0.0)]
    best: tuple[float, dict[str, int]] | None = None
    for left, still, lost in options:
        found = _cheapest(left, still, scores)
        if found and (best is None or lost + found[0] < best[0]):
            best = lost + found[0], {group.name: 0 for group in space.groups} | found[1]
    if best is None:
        raise PlanError(f"--ratio {ratio:.4f}: no equal widths of all layers remove as much; choose a smaller ratio")
    return best[1]


def _cheapest(space: Space, ratio: float, scores: Scores) -> tuple[float, dict[str, int]] | None:
    """Return what the best split loses in score, and its counts; None if none meets the ratio."""
    lost = {kind: _lost_by_width(space, scores, kind) for kind in space.narrowest()}
    best: tuple[float, dict[str, int]] | None = None
    for chosen in splits(space, ratio, scores):
        cost = sum(lost[kind][width] for kind, width in chosen.items())
        if best is None or cost < best[0]:
            best = cost, space.spread(chosen)
    return best


def splits(space: Space, ratio: float, scores: Scores) -> Iterator[dict[Kind, int]]:
    """Yield every choice of equal widths by kind that meets the ratio to within half a rounding step, and that can be stored.

    Only units that have a score can be kept.
    """
    multiples = space.multiples()
    options = []
    for kind, groups in space.by_kind().items():
        present = min(len(scores[group.name]) // multiples[group.name] for group in groups)
        options.append([(kind, width) for width in space.widths(space.narrowest()[kind]) if width <= present])
    filling = options.pop(max(range(len(options)), key=lambda place: len(options[place])))
    for choice in product(*options):
        for fill in _near(space, dict(choice), filling, ratio):
            chosen: dict[Kind, int] = dict([*choice, fill])
            if space.storable(space.spread(chosen)):
                yield chosen


def _near(
    space: Space, fixed: Mapping[Kind, int], filling: Sequence[tuple[Kind, int]], ratio: float
) -> list[tuple[Kind, int]]:
    """Return the widths of the filling kind that meet the ratio beside the fixed ones: one, or two in a draw."""
    half_step, ratios = space.half_step(), space.ratios(fixed, filling)
    return [fill for fill, found in zip(filling, ratios, strict=True) if abs(found - ratio) <= half_step]


def _lost_by_width(space: Space, scores: Scores, kind: Kind) -> Mapping[int, float]:
    """Return for every width of a kind what all its groups lose in score when they shrink to it."""
    multiples = space.multiples()
    sums = [(multiples[g.name], [0.0, *accumulate(lowest_first(g, scores[g.name]))]) for g in space.by_kind()[kind]]
    return {
        width: sum(s[max(0, len(s) - 1 - width * each)] for each, s in sums)
        for width in space.widths(space.narrowest()[kind])
    }
