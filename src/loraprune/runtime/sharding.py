"""Gather parameters that FSDP2 shards, and shard them again.

All functions are collective: every process must call them. Knows nothing about pruning.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor


def is_shard(tensor: Shaped[Tensor, "..."]) -> bool:
    """Return whether a tensor is sharded."""
    return isinstance(tensor, DTensor)


def is_sharded(model: nn.Module) -> bool:
    """Return whether a model's parameters are sharded."""
    return any(map(is_shard, model.parameters()))


def gather_tensor(tensor: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """Return a gathered tensor.

    `full_tensor` is a collective: every process must gather the same tensors in the same order, also those that do not use them, or
    all wait for ever. Source: https://docs.pytorch.org/docs/stable/distributed.tensor.html
    """
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_shard(tensor: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """Return this process's shard of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gather_tree(tree: Any) -> Any:
    """Return dicts and lists of tensors and plain values, with the tensors gathered."""
    if isinstance(tree, Mapping):
        return {key: gather_tree(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [gather_tree(value) for value in tree]
    return gather_tensor(tree.detach()) if isinstance(tree, Tensor) else tree


def shard_like(tensor: Shaped[Tensor, "*shape"], like: Shaped[Tensor, "..."]) -> Shaped[Tensor, "*shape"]:
    """Return an unsharded tensor, which all processes have, sharded if `like` is."""
    if isinstance(tensor, DTensor) or not isinstance(like, DTensor):
        return tensor
    # Without a source rank every process cuts its shard out of its own copy, which all have, instead of a scatter from the first one.
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def shard_on_load_(model: nn.Module) -> None:
    """Make `load_state_dict` of a model accept unsharded tensors, also after its parameters are sharded."""

    def shard(module: nn.Module, state: dict[str, Any], *_: Any) -> None:
        for name, parameter in module.named_parameters():
            if name in state:
                state[name] = shard_like(state[name], parameter)

    model.register_load_state_dict_pre_hook(shard)


def shard_moments(state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return an optimiser's unsharded state, sharded like its parameters."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    found = {
        place: {
            name: shard_like(value, parameters[place]) if torch.is_tensor(value) and value.dim() else value
            for name, value in moments.items()
        }
        for place, moments in state["state"].items()
    }
    return {**state, "state": found}


@contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """Give a module unsharded parameters and gradients inside the block."""
    shards = [
        (owner, name, parameter)
        for owner in module.modules()
        for name, parameter in owner.named_parameters(recurse=False)
        if isinstance(parameter, DTensor)
    ]
    for owner, name, shard in shards:
        parameter = nn.Parameter(gather_tensor(shard.detach()), requires_grad=False)
        parameter.grad = None if shard.grad is None else gather_tensor(shard.grad)
        setattr(owner, name, parameter)
    try:
        yield
    finally:
        for owner, name, shard in shards:
            setattr(owner, name, shard)


@contextmanager
def callable_inside(model: nn.Module) -> Iterator[None]:
    """Allow calling the modules inside a sharded model without calling the model itself."""
    if not isinstance(model, FSDPModule):
        yield
        return
    model.unshard()
    try:
        yield
    finally:
        model.reshard()
