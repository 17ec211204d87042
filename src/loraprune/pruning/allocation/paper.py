"""The authors' allocation: the first tenth of the layers and the last one stay whole, the others lose equal widths.

Knows nothing about scores.
"""

from __future__ import annotations

from dataclasses import replace

from loraprune.errors import PlanError
from loraprune.groups import layer_of
from loraprune.plan import Budget
from loraprune.pruning.allocation.space import Space
from loraprune.pruning.allocation.uniform import uniform_counts


def paper_counts(space: Space, ratio: float) -> dict[str, int]:
    """Return the counts that remove `ratio` of all prunable parameters from the layers that may lose some.

    Source: the code that the paper's authors published (docs/paper.md): the first floor(10 %) of the layers and the last layer are kept.

    Raises:
        PlanError: if these layers do not hold as many.
    """
    layers = list(dict.fromkeys(layer_of(group) for group in space.groups if layer_of(group)))
    # A group that spans layers reaches into those that stay whole.
    whole = {None, *layers[: len(layers) // 10], *layers[-1:]}
    open_groups = tuple(group for group in space.groups if layer_of(group) not in whole)
    counts = {group.name: group.units for group in space.groups}
    each = {group.name: space.budget.unit_parameters[group.name] for group in open_groups}
    budget = Budget(each, {group.name: group.units for group in open_groups})
    if not open_groups or ratio * space.budget.prunable >= budget.prunable:
        held = budget.prunable / space.budget.prunable
        raise PlanError(
            f"--ratio {ratio} --allocation paper: the layers that may be cut hold {held:.4f} of the parameters"
        )
    inner = replace(space, groups=open_groups, budget=budget, storable=lambda _: True)
    return counts | uniform_counts(inner, ratio * space.budget.prunable / budget.prunable)
