"""How removal is spread over the groups: from a goal and the progress towards it to a number of units for every group.

Knows nothing about tensors; ratios are counted in real parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product

from loraprune.errors import PlanError
from loraprune.groups import Group, Kind
from loraprune.plan import Budget

Counts = Mapping[str, int]
"""group name -> units kept"""

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


def uniform_counts(space: Space, ratio: float) -> dict[str, int]:
    """Return equal widths for all layers that remove `ratio` of the prunable parameters.

    Heads stay as near to the ratio as whole key-value heads allow, and the FFN fills what they leave, so that the
    ratio is met to within half a rounding step of the FFN.

    Raises:
        PlanError: if more is asked for than can be removed.
    """
    kinds = space.by_kind()
    for kind, groups in kinds.items():
        if len({group.units for group in groups}) > 1:
            raise PlanError(f"layers differ in their {kind} units already: uniform widths need equal layers")
    options = [[(kind, width) for width in space.widths(groups[0])] for kind, groups in kinds.items()]
    coarse, fine = _split(kinds, options)
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
            near = sum(abs(1 - count / kinds[kind][0].units - ratio) for kind, count in fixed.items())
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


def _split(kinds: Mapping[Kind, tuple[Group, ...]], options: Choices) -> tuple[Choices, list[tuple[Kind, int]]]:
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


def exact_counts(space: Space, *, heads: int | None, ffn: int | None) -> dict[str, int]:
    """Return the counts for `heads` query heads and `ffn` channels in every layer; None keeps all.

    Raises:
        PlanError: if the model cannot have them.
    """
    counts = {group.name: group.units for group in space.groups}
    for group in space.groups:
        wanted, each = (heads, group.sizes.get("num_attention_heads", 1)) if group.kind == "attention" else (ffn, 1)
        if wanted is None:
            continue
        option = "--heads" if group.kind == "attention" else "--ffn"
        if wanted % each or not 0 < wanted // each <= group.units:
            raise PlanError(
                f"{option} {wanted}: {group.name} can keep multiples of {each} up to {group.units * each} "
                "(query heads leave together with the key-value head they share)"
            )
        counts[group.name] = wanted // each
    if not space.storable(counts):
        raise PlanError(f"--heads {heads} --ffn {ffn}: no stock configuration of this model type can hold these widths")
    return counts


def towards(space: Space, final: Counts, progress: float) -> dict[str, int]:
    """Return the counts on the way from the dense model to `final`, never below it."""
    return {g.name: g.units - round((g.units - final[g.name]) * progress) for g in space.groups}
