"""Ratios where groups share weights: a kernel between two groups loses rows with one and columns with the other.

Every allocation counts what each unit owns in the dense model. Where that is counted twice, the ratio it is asked for is varied
until what really goes is what was wanted. Knows nothing about scores.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from loraprune.allocation.space import Space
from loraprune.errors import PlanError
from loraprune.plan import Budget

HALVINGS = 24


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
        raise refused or PlanError(f"--ratio {ratio}: no widths of this model can be had")
    if refused and best[0] + 2 * linear.half_step() < ratio:
        raise PlanError(
            f"--ratio {ratio}: at most {best[0]:.4f} of the prunable parameters can be removed from this model"
        )
    return best[1]
