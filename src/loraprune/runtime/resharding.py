"""Shard a block of a model again whose shapes have changed, while the other blocks stay as they are.

FSDP2 fixes the shapes of parameters when it wraps a module, and `fully_shard` wraps a module once. So the block is replaced by a fresh
module of its class that has the same children, parameters and attributes, and the hooks that it had before it was wrapped first; that one
is wrapped. What FSDP2 keeps of the former block stays alive without its memory. To FSDP2 every new block is a separate root: its weights
are gathered when it is called, and no earlier.
`load_state_dict` does not work for a block that was sharded again, as hooks of FSDP2 that know the old shapes stay on its children (torch
2.13); here adapters are only loaded before. All processes must do the same in the same order. Knows nothing about pruning.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from accelerate import FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from loraprune.runtime import launch
from loraprune.runtime.sharding import gather_tensor, is_shard, own_shard, shard_like

OWN = frozenset(vars(nn.Module()))
"""attributes in which every module keeps its children, parameters, buffers and hooks"""


def block_classes(model: nn.Module) -> list[str]:
    """Return the names of the classes whose modules FSDP gathers one at a time, as accelerate chooses them."""
    named = launch.named_blocks() or getattr(model, "_no_split_modules", None) or ()
    return sorted({type(module).__name__ for module in model.modules()} & set(named))


def wrap_blocks(plugin: FullyShardedDataParallelPlugin, model: nn.Module) -> None:
    """Let FSDP gather one block at a time if the launcher says nothing: accelerate would gather the whole model for every step."""
    if classes := None if launch.names_policy() else block_classes(model):
        plugin.auto_wrap_policy, plugin.transformer_cls_names_to_wrap = transformer_auto_wrap_policy, classes


class Blocks:
    """The blocks of a model that FSDP2 will wrap: create it before. Paths count from `model`."""

    def __init__(self, model: nn.Module) -> None:
        self._model, classes = model, set(block_classes(model))
        self._patterns = {
            path: _pattern(module) for path, module in model.named_modules() if type(module).__name__ in classes
        }

    @property
    def paths(self) -> tuple[str, ...]:
        """Return the paths of the blocks."""
        return tuple(self._patterns)

    @contextmanager
    def whole(self, path: str, optimizer: Optimizer | None = None) -> Iterator[None]:
        """Give a block unsharded parameters and moments, whose shapes may change inside; shard them again at the end.

        Only this block is gathered. Afterwards the optimiser holds the new parameters in the places of the old ones.
        """
        block = self._model.get_submodule(path)
        assert isinstance(block, FSDPModule)
        block.reshard()
        mesh = next(each.device_mesh for each in block.parameters() if isinstance(each, DTensor))
        found = [(module, name, parameter) for module in block.modules() for name, parameter in _own(module)]
        shards = [each for each in found if is_shard(each[2])]
        for module, name, shard in shards:
            gathered = nn.Parameter(gather_tensor(shard.detach()), requires_grad=shard.requires_grad)
            setattr(module, name, gathered)
            _hand_over(optimizer, shard, gathered, gather_tensor)
        yield
        whole = [getattr(module, name) for module, name, _ in shards]
        fresh = _renewed(self._patterns[path], block)
        self._model.set_submodule(path, fresh)
        _shard(fresh, mesh=mesh, ignored_params=set(fresh.parameters()) - set(whole))
        renewed: dict[Tensor, nn.Parameter] = {}
        for (module, name, shard), gathered in zip(shards, whole, strict=True):
            new = getattr(fresh if module is block else module, name)
            _hand_over(optimizer, gathered, new, partial(shard_like, like=new))
            renewed[shard] = new
            own_shard(shard.detach()).untyped_storage().resize_(0)
        for group in optimizer.param_groups if optimizer else ():
            group["params"] = [renewed.get(old, old) for old in group["params"]]


def _own(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return list(module.named_parameters(recurse=False))


def _shard(block: nn.Module, **options: Any) -> None:
    """Wrap a block as accelerate has wrapped the one before it."""
    plugin = AcceleratorState().fsdp_plugin
    policy = plugin.mixed_precision_policy or MixedPrecisionPolicy()
    sharded = fully_shard(block, reshard_after_forward=plugin.reshard_after_forward, mp_policy=policy, **options)
    # FSDP2 makes the tensors that it gathers into when it does so first: those of an evaluation, in inference mode, no step could use.
    sharded.unshard()
    sharded.reshard()


def _hand_over(optimizer: Optimizer | None, old: Tensor, new: nn.Parameter, change: Callable[[Tensor], Tensor]) -> None:
    """Give a parameter what an optimiser holds for another one, with its moments changed."""
    if optimizer is not None and old in optimizer.state:
        state = optimizer.state.pop(old)
        optimizer.state[new] = {
            name: change(value) if isinstance(value, Tensor) and value.dim() else value for name, value in state.items()
        }


def _pattern(block: nn.Module) -> nn.Module:
    """Return what `_renewed` needs of a block that is not wrapped; it holds no parameters."""
    pattern = _copied(block)
    for name, _ in _own(block):
        setattr(pattern, name, None)
    return pattern


def _copied(module: nn.Module) -> nn.Module:
    """Return a copy of a module itself: it has separate hooks, and shares children, tensors and other attributes."""
    attributes = [value for name, value in vars(module).items() if name not in OWN]
    shared = [*module.children(), *module.parameters(recurse=False), *module.buffers(recurse=False), *attributes]
    return copy.deepcopy(module, {id(each): each for each in shared})


def _renewed(pattern: nn.Module, block: nn.Module) -> nn.Module:
    """Return a module like a wrapped block that is not wrapped; `pattern` was made of it before it was."""
    fresh = _copied(pattern)
    attributes = [(name, value) for name, value in vars(block).items() if name not in OWN and name in vars(pattern)]
    for name, value in (*block.named_children(), *_own(block), *block.named_buffers(recurse=False), *attributes):
        setattr(fresh, name, value)
    fresh.training = block.training
    return fresh
