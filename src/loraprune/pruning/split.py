"""The measured split between heads and channels: each is tried with masks, and the one that changes the outputs least is used."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from loraprune.groups import Group, consumers
from loraprune.plan import Plan
from loraprune.pruning.allocation import Counts, Scores, Space, splits
from loraprune.pruning.masking import Masks
from loraprune.pruning.recovery.compensation import apply_refits_, solve_refits
from loraprune.pruning.recovery.end_to_end import Outputs
from loraprune.pruning.recovery.snapshot import Snapshot
from loraprune.runtime.processes import from_first
from loraprune.runtime.progress import shown

MOST = 8
"""splits that are tried; of more, ones spread over all"""
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

    def errors(self, tried: Sequence[Counts]) -> list[float]:
        """Return the distance of each split's outputs from the model's, on the rows kept aside, after reconstruction of projections.

        The cut alone does not decide it: on small models its ranking changes with the reconstruction (docs/log.md).
        """
        some = self.outputs.some(self.outputs.learned[::SHARE])
        full, masks, errors = Plan.full(tuple(self.groups)).kept, Masks(self.model, self.groups), []
        readers = dict.fromkeys(span.module for group in self.groups for span in consumers(group))
        frozen = Snapshot(self.model, readers if self.compensate else ())
        try:
            for counts in shown(tried, "measuring splits"):
                kept = {name: tuple(sorted(units[: counts[name]])) for name, units in self.ranked.items()}
                refits = solve_refits(self.model, self.groups, kept, some) if self.compensate else {}
                masks.set(kept)
                apply_refits_(self.model, self.groups, kept, refits)
                errors.append(self.outputs.distance(self.model).error)
                masks.set(full)
                frozen.restore_()
        finally:
            masks.remove()
            frozen.restore_()
        return errors


def measured_counts(trial: Trial, space: Space, ratio: float, uniform: Counts) -> Counts:
    """Return the counts of equal widths that change the outputs least; `uniform` where there is nothing to choose."""
    scores: Scores = {name: [0.0] * len(units) for name, units in trial.ranked.items()}
    found = [] if space.budget.shared else [space.spread(split) for split in splits(space, ratio, scores)]
    if len(space.by_kind()) < 2 or len(found) < 2:
        return uniform
    places = sorted({round(place * (len(found) - 1) / (MOST - 1)) for place in range(MOST)})
    tried = [dict(uniform), *(found[place] for place in places if found[place] != uniform)]
    errors = trial.errors(tried)
    best = from_first(min(range(len(tried)), key=lambda place: errors[place]))
    logger.info(
        "split: %s; of %d splits it changes the outputs least (by %.3f; equal ratios: %.3f)",
        ", ".join(f"{kind} {tried[best][members[0].name]} of {members[0].units}" for kind, members in space.by_kind().items()),
        len(tried), errors[best], errors[0],
    )  # fmt: skip
    return tried[best]
