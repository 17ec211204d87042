"""Parameters of which every process holds a part, as FSDP2 has them, seen whole.

Every process must take part in whatever is done here. Knows nothing about pruning.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor


def is_sharded(model: nn.Module) -> bool:
    """Say whether processes hold parts of a model's parameters."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def whole_tensor(tensor: Tensor) -> Tensor:
    """Return a tensor with the parts of all processes."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_part(tensor: Tensor) -> Tensor:
    """Return this process's part of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@contextmanager
def whole(module: nn.Module) -> Iterator[None]:
    """Let a module have its parameters and their gradients whole inside the block."""
    parts = [
        (owner, name, parameter)
        for owner in module.modules()
        for name, parameter in owner.named_parameters(recurse=False)
        if isinstance(parameter, DTensor)
    ]
    for owner, name, part in parts:
        parameter = nn.Parameter(whole_tensor(part.detach()), requires_grad=False)
        parameter.grad = None if part.grad is None else whole_tensor(part.grad)
        setattr(owner, name, parameter)
    try:
        yield
    finally:
        for owner, name, part in parts:
            setattr(owner, name, part)


@contextmanager
def callable_inside(model: nn.Module) -> Iterator[None]:
    """Let the modules inside a sharded model be called without calling the model itself."""
    if not isinstance(model, FSDPModule):
        yield
        return
    model.unshard()
    try:
        yield
    finally:
        model.reshard()
