"""The measured split between heads, channels and layers: each is tried with masks, and the one that changes the outputs least is used."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from loraprune.families.depth import gone_layers
from loraprune.groups import Group, consumers, layer_of
from loraprune.plan import Plan
from loraprune.pruning.allocation import ALLOCATIONS, Counts, Scores, Space, most_layers, reach, splits, without_layers
from loraprune.pruning.influence import layer_order
from loraprune.pruning.masking import Masks
from loraprune.pruning.recovery.compensation import Refit, apply_refits_, solve_refits
from loraprune.pruning.recovery.end_to_end import Distance, Outputs
from loraprune.pruning.recovery.snapshot import Snapshot
from loraprune.runtime.processes import from_first
from loraprune.runtime.progress import shown

MOST = 8
"""splits that are tried, and numbers of layers; of more, ones spread over all"""
SHARE = 4
"""one row in so many is used to reconstruct a split that is tried"""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Trial:
    """An unpruned model, and the data for trying splits of it."""

    model: nn.Module
    groups: Sequence[Group]
    ranked: Mapping[str, Sequence[int]]
    """the units of each group, best first"""
    outputs: Outputs
    compensate: bool
    """whether projections are reconstructed after the cut"""

    def kept(self, counts: Counts) -> dict[str, tuple[int, ...]]:
        """Return the best units of every group, as many as `counts` says."""
        return {name: tuple(sorted(units[: counts[name]])) for name, units in self.ranked.items()}

    def distances(self, tried: Sequence[Counts]) -> list[Distance]:
        """Return the distance of each split's outputs from the model's, on the rows kept aside, after reconstruction of projections.

        The cut alone does not decide it: on small models its ranking changes with the reconstruction (docs/log.md).
        """
        full, masks, found = Plan.full(tuple(self.groups)).kept, Masks(self.model, self.groups), []
        readers = dict.fromkeys(span.module for group in self.groups for span in consumers(group))
        frozen = Snapshot(self.model, readers if self.compensate else ())
        try:
            for counts in shown(tried, "measuring splits"):
                kept, refits = self.kept(counts), self.refits(counts)
                masks.set(kept)
                apply_refits_(self.model, self.groups, kept, refits)
                found.append(self.outputs.distance(self.model))
                masks.set(full)
                frozen.restore_()
        finally:
            masks.remove()
            frozen.restore_()
        return found

    def refits(self, counts: Counts) -> Mapping[str, Refit]:
        """Return the changes of projections for a split, solved on a share of the rows; none where they are not reconstructed."""
        if not self.compensate:
            return {}
        some = self.outputs.some(self.outputs.learned[::SHARE])
        return solve_refits(self.model, self.groups, self.kept(counts), some)


def measured_counts(trial: Trial, space: Space, ratio: float, uniform: Counts) -> Counts:
    """Return the counts that change the outputs least: equal widths, with fewer layers where the space lets layers go.

    First come all splits of the whole model, and every number of removed layers with equal ratios in the others; then, if layers go,
    the splits of the layers left. `uniform` is returned where there is nothing to choose.
    """
    tried = [*splits_of(space, ratio, uniform), *shallower_ones(trial, space, ratio)]
    if len(tried) < 2:
        return uniform
    errors = [found.error for found in trial.distances(tried)]
    best = least(errors)
    if more := narrower_ones(space, ratio, tried[best]):
        tried, errors = [*tried, *more], [*errors, *(found.error for found in trial.distances(more))]
        best = least(errors)
    logger.info(
        "split: %s; of %d splits it changes the outputs least (by %.3f; equal ratios: %.3f)",
        described(space, tried[best]), len(tried), errors[best], errors[0],
    )  # fmt: skip
    return tried[best]


def shallower_ones(trial: Trial, space: Space, ratio: float) -> list[dict[str, int]]:
    """Return the counts of up to `MOST` numbers of removed layers, with equal ratios in the others; none if no layer may go."""
    if not space.layers:
        return []
    order = layer_order(trial.model, trial.groups, trial.outputs, most_layers(space, ratio))
    return [_shallower(space, ratio, order[: place + 1]) for place in _spread(len(order))]


def narrower_ones(space: Space, ratio: float, counts: Counts) -> list[dict[str, int]]:
    """Return the other splits of the layers that `counts` keeps, if some go."""
    gone = gone_layers(counts)
    if not gone:
        return []
    left, still = without_layers(space, gone, ratio)
    found = splits_of(left, still, {group.name: counts[group.name] for group in left.groups})[1:]
    return [dict.fromkeys(counts, 0) | narrower for narrower in found]


def splits_of(space: Space, ratio: float, uniform: Counts) -> list[dict[str, int]]:
    """Return `uniform`, and up to `MOST` other splits between heads and channels that remove as much, spread over all.

    A small ratio is also met, to within half a step, by removing nothing, which would always change the outputs least.
    """
    scores: Scores = {group.name: [0.0] * group.units for group in space.groups}
    found = [] if space.budget.shared else [space.spread(split) for split in splits(space, ratio, scores)]
    whole = {group.name: group.units for group in space.groups}
    found = [counts for counts in found if counts != whole or uniform == whole]
    if len(space.by_kind()) < 2 or len(found) < 2:
        return [dict(uniform)]
    return [dict(uniform), *(found[place] for place in _spread(len(found)) if found[place] != uniform)]


def _shallower(space: Space, ratio: float, gone: Sequence[str]) -> dict[str, int]:
    """Return the counts without some layers; what is still to be removed is by equal ratios in the others."""
    left, still = without_layers(space, gone, ratio)
    counts = reach(left, ALLOCATIONS["uniform"], max(0.0, still), {})
    return {group.name: 0 for group in space.groups} | counts


def _spread(count: int) -> list[int]:
    """Return up to `MOST` places of a list of `count` entries, evenly spread, the first and the last among them."""
    return sorted({round(place * (count - 1) / (MOST - 1)) for place in range(MOST)}) if count else []


def least(errors: Sequence[float]) -> int:
    """Return the place of the least error; all processes take the first one's."""
    return from_first(min(range(len(errors)), key=lambda place: errors[place]))


def described(space: Space, counts: Counts) -> str:
    """Return the units of every kind in the layers left, and the layers if some go."""
    layers, gone = {layer_of(group) for group in space.groups}, gone_layers(counts)
    parts = [f"layers {len(layers) - len(gone)} of {len(layers)}"] if gone else []
    for kind, members in space.by_kind().items():
        shown_one = next(group for group in members if layer_of(group) not in gone)
        parts.append(f"{kind} {counts[shown_one.name]} of {shown_one.units}")
    return ", ".join(parts)
