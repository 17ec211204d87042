"""Where a curve of loss against size bends, and which size to recommend. Knows nothing about runs.

Both rules are simple on purpose, and chosen here. They see one figure per size, and no noise.

- The knee is the size furthest below the straight line from the first to the last point, in a plot in which both axes have length 1.
  There is none if that distance is less than `LEAST`, or if the last point loses nothing against the first.
- The knee is recommended if its verdict is `usable`, else the smallest size with that verdict, else none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from loraprune.evaluation.measurement import PERPLEXITY

LEAST = 0.1
"""distance below the line from which on a point is a knee; a straight line has 0, a parabola 0.25"""

MARKS = ("knee", "recommended")
"""what a point may be on its curve: fields of `Advice`"""
RULE = (
    "The knee is the size furthest below the straight line from the first to the last point, where both axes have length 1; there is none "
    f"below {LEAST}. The knee is recommended if it has the verdict usable, else the smallest size that has it."
)


@dataclass(frozen=True, slots=True)
class Point:
    """One size of a model."""

    name: str
    parameters: float
    loss: float
    """lower is better, such as nats a token"""
    usable: bool
    """whether it has the verdict `usable`"""


@dataclass(frozen=True, slots=True)
class Advice:
    """What a curve says."""

    knee: str | None
    """name of the point where it bends; None where it does not"""
    recommended: str | None
    """None if no point is usable"""
    reason: str
    """one clause"""


def advise(points: Sequence[Point], *, start: tuple[float, float] | None, unit: str) -> Advice:
    """Return where a curve bends, and which of its points to recommend.

    Args:
        points: at least one, in any order.
        start: parameters and loss of the dense model, if it was trained as the points were.
        unit: unit of the loss, for the reason.
    """
    points = sorted(points, key=lambda point: -point.parameters)
    curve = [*([start] if start else []), *((point.parameters, point.loss) for point in points)]
    place = find_knee(curve)
    knee = None if place is None else points[place - len(curve) + len(points)]
    bent = knee.name if knee else None
    usable = [point for point in points if point.usable]
    bend = "no knee was found" if knee is None else f"{knee.name} is the knee: {_prices(curve, place or 0, unit)}"
    if not usable:
        return Advice(bent, None, f"{bend}; no size has the verdict usable, so none is recommended")
    if knee and knee.usable:
        return Advice(knee.name, knee.name, bend)
    smallest = usable[-1]
    below = "" if smallest is points[-1] else "; smaller ones are not usable"
    return Advice(
        bent,
        smallest.name,
        f"{bend}; {smallest.name} is the smallest size with the verdict usable{below}",
    )


def find_knee(curve: Sequence[tuple[float, float]]) -> int | None:
    """Return the place of the knee of a curve of parameters and loss, largest size first; None if there is none."""
    (most, first), (least, last) = curve[0], curve[-1]
    if last <= first or least >= most:
        return None
    below = [(most - size) / (most - least) - (loss - first) / (last - first) for size, loss in curve]
    place = max(range(len(curve)), key=below.__getitem__)
    return place if below[place] >= LEAST else None


def _prices(curve: Sequence[tuple[float, float]], place: int, unit: str) -> str:
    """Return what a hundredth of the largest size costs before and behind a point of a curve."""
    before, behind = (
        (curve[b][1] - curve[a][1]) / (curve[a][0] - curve[b][0]) * curve[0][0] / 100
        for a, b in ((0, place), (place, len(curve) - 1))
    )
    return f"every further 1 % of the parameters costs {behind:.2g} {unit}, and {before:.2g} up to it"


def unit_of(metric: str) -> str:
    """Return the unit of the loss of a metric."""
    return "nats a token" if metric == PERPLEXITY else metric.replace("_", " ")
