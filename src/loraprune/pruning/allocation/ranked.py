"""One ranking over the whole model: units with the lowest score per parameter are removed first, in any layer.

Layers end with different widths. Knows nothing about where scores come from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from loraprune.errors import PlanError
from loraprune.groups import Group
from loraprune.pruning.allocation.space import Scores, Space, lowest_first

FLOOR = 0.1
"""fraction of its units that every group keeps, at least one"""


class _Piece(NamedTuple):
    """Units that go together: a head, or as many channels as a width is rounded to."""

    density: float
    """score a parameter"""
    place: int
    """breaks ties: pieces of one group stay in their order"""
    group: str
    units: int
    parameters: int


def ranked_counts(space: Space, ratio: float, scores: Scores) -> dict[str, int]:
    """Return the counts that remove `ratio` of the prunable parameters, lowest score per parameter first.

    Only units that have a score can be kept. The ratio is met to within half a head or rounding step.

    Raises:
        PlanError: if the floors allow less.
    """
    counts = {name: len(values) for name, values in scores.items()}
    left = ratio * space.budget.prunable - (space.budget.prunable - space.budget.kept(counts))
    pieces = sorted(piece for group in space.groups for piece in _pieces(space, group, scores))
    chosen = _cheapest(pieces, left)
    left -= sum(piece.parameters for piece in chosen)
    rest = [piece for piece in pieces if piece not in chosen]
    if left > min((piece.parameters for piece in pieces), default=0) / 2 and rest:
        # Only pieces that overshoot are left: take one of those.
        chosen.append(rest[0])
        left -= rest[0].parameters
    for piece in sorted(chosen, key=lambda piece: (piece.parameters, -piece.density, -piece.place)):
        # Overshot: small pieces come back, the dearest first, as long as that is nearer to the target.
        if left + piece.parameters / 2 < 0:
            chosen.remove(piece)
            left += piece.parameters
    if left > max((piece.parameters for piece in pieces), default=1) / 2:
        reached = ratio - left / space.budget.prunable
        raise PlanError(f"--ratio {ratio}: at most {reached:.4f} can be removed where every layer keeps {FLOOR:.0%}")
    for piece in chosen:
        counts[piece.group] -= piece.units
    return counts


def _cheapest(pieces: Sequence[_Piece], left: float) -> list[_Piece]:
    """Return the pieces that remove `left` parameters, lowest density first, to within half a piece."""
    chosen: list[_Piece] = []
    ended: set[str] = set()
    for piece in pieces:
        # What stands behind a piece that overshoots, in its group, scores higher; smaller ones elsewhere may still fit.
        if piece.group in ended or piece.parameters > 2 * left:
            ended.add(piece.group)
            continue
        chosen.append(piece)
        left -= piece.parameters
    return chosen


def _pieces(space: Space, group: Group, scores: Scores) -> Iterator[_Piece]:
    """Yield what a group can lose, lowest first, down to its floor."""
    values = lowest_first(group, scores[group.name])
    step = space.step(group)
    floor = max(group.least, min(step, group.units), round(FLOOR * group.units))
    each, present, start = space.budget.unit_parameters[group.name], len(values), 0
    while True:
        size = (present - start) % step or step  # the first piece takes what is over a multiple of the step
        if present - start - size < floor:
            return
        parameters = size * each
        density = sum(values[start : start + size]) / parameters
        yield _Piece(density, start, group.name, size, parameters)
        start += size
