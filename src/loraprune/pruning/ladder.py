"""The search for the largest cut within a limit: which ratios give different shapes, and which of them to try next.

Knows nothing about runs.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from contextlib import suppress

from loraprune.config.pruning import LoRAPruneConfig
from loraprune.errors import PlanError
from loraprune.pruning.allocation import Space
from loraprune.pruning.target import goal_counts

RATIOS = (*(step / 1000 for step in range(1, 100)), *(step / 100 for step in range(10, 100)))
"""rungs, as far as they give different shapes: no step is above a tenth of the cut from 0.01 on. Finer ones cost less than the loss varies
with the seed"""
LOSS, EXPONENT = 1.5, 1.5
"""loss = LOSS * ratio ** EXPONENT is the guess before anything is measured: about what the recipe `best` has in docs/results.md"""
FACTOR = 3.0
"""the next ratio is at most so many times the largest one that was tried: a small loss is mostly noise, from which nothing far follows"""


def ladder(space: Space, config: LoRAPruneConfig) -> list[float]:
    """Return ratios that give different shapes, smallest first, as far as shapes are known without scores."""
    found: dict[int, float] = {}
    for ratio in RATIOS:
        with suppress(PlanError):
            counts = goal_counts(space, config, ratio)
            found.setdefault(space.budget.kept(counts), ratio)
    found.pop(space.budget.prunable, None)  # rounded to nothing
    return sorted(found.values())


def next_rung(rungs: Sequence[float], losses: Mapping[float, float], limit: float, *, left: int) -> float | None:
    """Return the ratio to try next, or None if there is nothing left to try.

    A larger cut is taken to lose more. Where no cut has held so far, the last run is the smallest one.

    Args:
        rungs: ratios that give different shapes, smallest first.
        losses: ratio -> loss of the runs so far, 0 or above; for a perplexity its logarithm relative to the dense model's.
        limit: largest loss that holds.
        left: number of runs that are left.
    """
    held = [place for place, ratio in enumerate(rungs) if losses.get(ratio, math.inf) <= limit]
    low = max(held, default=-1)
    broken = [place for place, ratio in enumerate(rungs) if place > low and ratio in losses]
    high = min(broken, default=len(rungs))
    if high - low < 2:
        return None
    if low < 0 and left <= 1:
        return rungs[0]
    if left < 1:
        return None
    below = bisect_right(rungs, _guess(losses, limit)) - 1  # the larger cut would lose too much
    if low >= 0 and broken and not low < below < high:
        below = (low + high) // 2
    return rungs[min(max(below, low + 1), high - 1)]


def _guess(losses: Mapping[float, float], limit: float) -> float:
    """Return the ratio at which the loss is expected to be the limit; the loss is taken to be a power of the ratio."""
    limit = max(limit, 1e-6)
    points = [(ratio, loss) for ratio, loss in losses.items() if loss > 0]
    points.sort(key=lambda point: abs(math.log(point[1] / limit)))
    most = FACTOR * max(losses, default=1.0)
    if not points:
        return most if losses else (limit / LOSS) ** (1 / EXPONENT)
    (ratio, loss), exponent = points[0], EXPONENT
    if len(points) > 1:
        other, lost = points[1]
        exponent = min(max(math.log(lost / loss) / math.log(other / ratio), 0.5), 4.0)
    return min(most, ratio * (limit / loss) ** (1 / exponent))
