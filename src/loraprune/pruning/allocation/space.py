"""The choices of an allocation: groups, the parameters of their units, and their possible widths.

Knows nothing about tensors; ratios are counted in real parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from loraprune.errors import PlanError
from loraprune.groups import Group, Kind
from loraprune.plan import Budget

Counts = Mapping[str, int]
"""group name -> units kept"""

Scores = Mapping[str, Sequence[float]]
"""group name -> scores of its present units"""

Storable = Callable[[Counts], bool]
"""counts -> whether a stock checkpoint can hold them"""


EXPERT_STEP = 8
"""widths of experts are multiples of this: grouped products of matrices need rows of 16 bytes, eight numbers in 16 bits"""


def lowest_first(group: Group, scores: Sequence[float]) -> list[float]:
    """Return the scores of the present units of a group in the order in which these go: of several parts the lowest of each, and so on."""
    each = len(scores) // group.parts
    ordered = [sorted(scores[start : start + each]) for start in range(0, len(scores), max(1, each))]
    return [score for together in zip(*ordered, strict=True) for score in together]


@dataclass(frozen=True, slots=True)
class Space:
    """Everything that an allocation may choose from."""

    groups: tuple[Group, ...]
    """groups of the dense model"""
    budget: Budget
    round: int
    """widths of FFNs and convolutions are multiples of this, or the full width"""
    storable: Storable
    layers: bool = False
    """whether whole layers may go too"""

    def widths(self, group: Group) -> list[int]:
        """Return the numbers of units that a group may keep, ascending."""
        step = self.step(group)
        return sorted({*(width for width in range(step, group.units + 1, step) if width >= group.least), group.units})

    def step(self, group: Group) -> int:
        """Return what the widths of a group are multiples of: heads and experts go one by one, query heads one for each key-value head."""
        if group.kind == "query":
            return group.parts
        if group.kind == "expert_ffn":
            return -(-self.round // EXPERT_STEP) * EXPERT_STEP
        return 1 if group.kind in ("attention", "expert") else self.round

    def by_kind(self) -> dict[Kind, tuple[Group, ...]]:
        """Return the groups of every kind, in the model's order."""
        kinds: dict[Kind, tuple[Group, ...]] = {}
        for group in self.groups:
            kinds[group.kind] = (*kinds.get(group.kind, ()), group)
        return kinds

    def narrowest(self) -> dict[Kind, Group]:
        """Return the group of every kind with the fewest units, the first of several: its width stands for all of the kind."""
        return {kind: min(groups, key=lambda group: group.units) for kind, groups in self.by_kind().items()}

    def multiples(self) -> dict[str, int]:
        """Return how many units of each group correspond to one of its kind's narrowest group, where stages differ in width.

        Raises:
            PlanError: if that is not a whole number.
        """
        found, narrowest = {}, self.narrowest()
        for group in self.groups:
            found[group.name], rest = divmod(group.units, narrowest[group.kind].units)
            if rest:
                raise PlanError(
                    f"layers differ in their {group.kind} units already ({narrowest[group.kind].units} and {group.units}): "
                    "uniform widths need equal layers, or stages that are multiples of each other"
                )
        return found

    def share(self, kind: Kind) -> float:
        """Return the ratio that one unit in the narrowest group of a kind is worth, with as much in all others."""
        multiples = self.multiples()
        owned = sum(self.budget.unit_parameters[g.name] * multiples[g.name] for g in self.by_kind()[kind])
        return owned / self.budget.prunable

    def half_step(self) -> float:
        """Return the ratio that half a rounding step of the finest-grained kind is worth: what a target is met to."""
        kind, group = max(self.narrowest().items(), key=lambda entry: len(self.widths(entry[1])))
        step = max((b - a for a, b in pairwise(self.widths(group))), default=1)
        return 0.5 * step * self.share(kind) + 1e-12

    def ratios(self, fixed: Mapping[Kind, int], filling: Sequence[tuple[Kind, int]]) -> list[float]:
        """Return the ratio at every width of one kind beside the fixed widths of the others; linear in the width."""
        kind = filling[0][0]
        without, share = self.budget.ratio(self.spread({**fixed, kind: 0})), self.share(kind)
        return [without - width * share for _, width in filling]

    def spread(self, chosen: Mapping[Kind, int]) -> dict[str, int]:
        """Return counts with the same number of units in every group of a kind, or the same fraction where stages differ."""
        multiples = self.multiples()
        return {group.name: chosen[group.kind] * multiples[group.name] for group in self.groups}
