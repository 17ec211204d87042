"""How many heads, channels and layers go, where calibration rows decide it.

Knows nothing about scores but the order of units that they give.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from loraprune.config.pruning import LoRAPruneConfig
from loraprune.families.depth import gone_layers
from loraprune.groups import Group
from loraprune.pruning.influence import layer_order
from loraprune.pruning.query_units import QueryUnits
from loraprune.pruning.recovery.end_to_end import Outputs
from loraprune.pruning.shapes import View, search
from loraprune.pruning.split import Trial, measured_counts
from loraprune.pruning.target import Target, goal_counts

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Choice:
    """A shape that was chosen."""

    counts: Mapping[str, int]
    """group -> units to keep"""
    by_query_heads: bool = False
    """whether the groups are those with query heads as units"""
    shapes: dict[str, Any] | None = None
    """what the report says about all shapes that were tried"""


def choose_split(
    trial: Trial, target: Target, finer: QueryUnits | None, *, searches: bool, steps: int, seed: int
) -> Choice:
    """Return the split between heads and channels that leaves the outputs nearest; if it `searches`, the best shape of all kinds.

    Args:
        trial: Tries shapes with key-value heads as units.
        target: What they are to reach.
        finer: Query heads as units, where they may be tried too.
        searches: Whether shapes are compared after recovery.
        steps: Steps of end-to-end reconstruction that will follow the removal.
        seed: Seed of the reconstruction of shapes.
    """
    if not searches:
        return Choice(measured_counts(trial, target.space, target.ratio, target.counts))
    views = [View(target, trial)]
    if finer:
        ranked = {**trial.ranked, **finer.ranked()}
        views.append(View(finer.target, replace(trial, groups=finer.target.groups, ranked=ranked)))
    found = search(views, steps=steps, seed=seed)
    return Choice(found.counts, found.place > 0, found.entry)


def choose_layers(
    model: nn.Module, groups: Sequence[Group], outputs: Outputs, target: Target, config: LoRAPruneConfig
) -> Choice:
    """Return the counts of --layers, with the layers that change the outputs least removed."""
    order = layer_order(model, groups, outputs, len(gone_layers(target.counts)))
    logger.info("layers that change the outputs least: %s", ", ".join(order))
    return Choice(goal_counts(target.space, config, target.ratio, order))
