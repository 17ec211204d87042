"""One step's memory spread over several GPUs, and how many of a kind are needed.

Knows nothing about models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Sharding = Literal["ddp", "fsdp"]
GPUS = (24, 40, 48, 80, 141)
"""GiB of memory of the cards that there are"""
GIB = 1 << 30
RESERVE = GIB
"""bytes of a card that tensors cannot use: CUDA's context, its libraries' workspaces and the allocator's unused memory"""
MOST = 1024
"""GPUs that are tried"""
UNSHARDED = ("compensation", "reconstruction")
"""parts that there are only where weights are not sharded"""
SHARDED = ("weights", "lora", "gradients", "optimiser", "teacher")
"""parts of which FSDP gives every GPU its share"""


@dataclass(frozen=True, slots=True)
class Blocks:
    """The layout of a model's weights, in bytes."""

    largest: int
    """of the layer that has most"""
    outside: int
    """of embeddings, head and norms, which are in no layer"""
    undivided: int = 0
    """of quantised layers, which FSDP does not shard"""


def on_each_gpu(
    parts: Mapping[str, int], blocks: Blocks, *, trained: int, gpus: int, sharding: Sharding
) -> dict[str, int]:
    """Return the memory of each of several GPUs with separate micro-batches; `trained` are bytes of trained parameters.

    DDP repeats everything and keeps the gradients once more, in the buckets that it sends. FSDP shares out all that belongs to
    parameters, but for quantised ones, and gathers one layer while the next is on its way, and what lies outside of layers for the
    whole step.
    """
    if gpus == 1:
        return dict(parts)
    if sharding == "ddp":
        return {**parts, "communication": trained}
    shared = {
        name: -(-size // gpus) if name in SHARDED else size for name, size in parts.items() if name not in UNSHARDED
    }
    shared["weights"] = blocks.undivided + -(-(parts["weights"] - blocks.undivided) // gpus)
    return {**shared, "communication": 2 * blocks.largest + blocks.outside}


def gpus_needed(parts: Mapping[str, int], blocks: Blocks, *, trained: int, gib: int) -> int | None:
    """Return how many cards of so many GiB a step needs: one, or as many as FSDP needs, or None where none suffice."""
    for gpus in range(1, MOST + 1):
        each = on_each_gpu(parts, blocks, trained=trained, gpus=gpus, sharding="fsdp")
        if sum(each.values()) + RESERVE <= gib * GIB:
            return gpus
    return None
