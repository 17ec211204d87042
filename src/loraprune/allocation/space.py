"""What an allocation chooses from: groups, what their units cost, and which widths they may have.

Knows nothing about tensors; ratios are counted in real parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from loraprune.groups import Group, Kind
from loraprune.plan import Budget

Counts = Mapping[str, int]
"""group name -> units kept"""

Scores = Mapping[str, Sequence[float]]
"""group name -> scores of its present units"""

Storable = Callable[[Counts], bool]
"""counts -> whether a stock checkpoint can hold them"""


@dataclass(frozen=True, slots=True)
class Space:
    """Everything an allocation may choose from."""

    groups: tuple[Group, ...]
    """groups of the dense model"""
    budget: Budget
    round: int
    """FFN widths are multiples of this, or the full width"""
    storable: Storable

    def widths(self, group: Group) -> list[int]:
        """Return the numbers of units that a group may keep, ascending."""
        if group.kind != "ffn":
            return list(range(1, group.units + 1))
        return sorted({*range(self.round, group.units + 1, self.round), group.units})

    def by_kind(self) -> dict[Kind, tuple[Group, ...]]:
        """Return the groups of every kind, in the model's order."""
        kinds: dict[Kind, tuple[Group, ...]] = {}
        for group in self.groups:
            kinds[group.kind] = (*kinds.get(group.kind, ()), group)
        return kinds

    def share(self, kind: Kind) -> float:
        """Return the ratio that one unit in every group of a kind is worth."""
        return sum(self.budget.unit_parameters[group.name] for group in self.by_kind()[kind]) / self.budget.prunable

    def half_step(self) -> float:
        """Return the ratio that half a rounding step of the finest-grained kind is worth: what a target is met to."""
        kind, groups = max(self.by_kind().items(), key=lambda entry: len(self.widths(entry[1][0])))
        step = max((b - a for a, b in pairwise(self.widths(groups[0]))), default=1)
        return 0.5 * step * self.share(kind) + 1e-12

    def ratios(self, fixed: Mapping[Kind, int], filling: Sequence[tuple[Kind, int]]) -> list[float]:
        """Return the ratio at every width of one kind beside the fixed widths of the others; linear in the width."""
        kind = filling[0][0]
        without, share = self.budget.ratio(self.spread({**fixed, kind: 0})), self.share(kind)
        return [without - width * share for _, width in filling]

    def spread(self, chosen: Mapping[Kind, int]) -> dict[str, int]:
        """Return counts with the same number of units in every group of a kind."""
        return {group.name: chosen[group.kind] for group in self.groups}
