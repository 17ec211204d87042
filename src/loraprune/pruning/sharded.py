"""Cut a model that FSDP2 shards: one block at a time is gathered, cut and sharded again.

A removal gathers the blocks twice, as every step of the training does. So it is done at every removal, however close the next one is.
Knows nothing about scores or schedules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn
from torch.optim import Optimizer

from loraprune.groups import Group, Units
from loraprune.pruning.surgery import slice_
from loraprune.runtime import launch
from loraprune.runtime.resharding import Blocks


def why_masked(groups: Sequence[Group], blocks: Blocks) -> str | None:
    """Return what keeps a sharded model from being cut while it trains, in a few words; None if it can be."""
    if option := launch.why_shards_stay():
        return f"with {option} shards keep their shapes"
    if not blocks.paths:
        return "the model does not say what its blocks are"
    inner = [one for one in blocks.paths for other in blocks.paths if one.startswith(f"{other}.")]
    outer = [group.name for group in groups if _block_of(group, blocks) is None]
    return f"{[*inner, *outer][0]} is not inside a single block" if inner or outer else None


def slice_sharded_(
    model: nn.Module,
    groups: Sequence[Group],
    kept: Mapping[str, Units],
    *,
    blocks: Blocks,
    optimizer: Optimizer | None = None,
) -> tuple[Group, ...]:
    """Remove all units but those in `kept` from a sharded model, as `slice_` does; parameters are new ones, also in the optimiser."""
    smaller: dict[str, Group] = {}
    for path in blocks.paths:
        lost = [each for each in groups if _block_of(each, blocks) == path and len(kept[each.name]) < each.units]
        if lost:
            with blocks.whole(path, optimizer):
                smaller |= {group.name: group for group in slice_(model, lost, kept, optimizer=optimizer)}
    return tuple(smaller.get(group.name, group) for group in groups)


def _block_of(group: Group, blocks: Blocks) -> str | None:
    """Return the block that holds all of a group."""
    around = (path for path in blocks.paths if all(f"{span.module}.".startswith(f"{path}.") for span in group.spans))
    return next(around, None)
