"""What an optimiser keeps for a parameter: it is cut with the parameter, or refused where it cannot be.

Knows nothing about models.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from loraprune.errors import ConfigError

REMEDY = "train with torch's AdamW, or with shrink=False"


def cut_state_(
    optimizer: torch.optim.Optimizer,
    parameter: Shaped[Tensor, "..."],
    before: torch.Size,
    dim: int,
    index: Int[Tensor, " left"],
) -> None:
    """Keep some entries of what an optimiser holds for a parameter that was cut; `before` is the shape that it had.

    Raises:
        ConfigError: for a state that has another shape.
    """
    if parameter not in optimizer.state:
        return
    state = optimizer.state[parameter]
    if odd := odd_entry(state, before):
        raise ConfigError(odd_state_problem(optimizer, odd))
    for name, value in state.items():
        if isinstance(value, Tensor) and value.shape == before:
            state[name] = value.index_select(dim, index.to(value.device)).contiguous()


def odd_entry(state: Mapping[Any, Any], shape: torch.Size) -> str | None:
    """Return the name of an entry that cannot be cut like its parameter: of another shape, or in a list or an object."""
    for name, value in state.items():
        is_plain = isinstance(value, Tensor) and value.shape == shape
        if not is_plain and any(tensor.numel() > 1 for tensor in tensors_in(value)):
            return str(name)
    return None


def odd_state_problem(optimizer: torch.optim.Optimizer, entry: str) -> str:
    """Return in one sentence that an entry of an optimiser's state cannot be cut."""
    own = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
    return f"{type(own).__name__}: its state {entry!r} does not have one number per weight, so it cannot be cut with the weight; {REMEDY}"


def copies_outside_state(optimizer: torch.optim.Optimizer) -> str | None:
    """Return the name of an attribute in which an optimiser keeps tensors like its parameters, or another optimiser with its own state."""
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    shapes, live = {each.shape for each in parameters if each.numel() > 1}, {id(each) for each in parameters}
    own = {name: value for name, value in vars(optimizer).items() if name not in ("state", "param_groups", "defaults")}
    groups = {name: value for group in optimizer.param_groups for name, value in group.items() if name != "params"}
    for name, value in {**groups, **own}.items():
        if isinstance(value, torch.optim.Optimizer) and value.state is not optimizer.state:
            return name
        if any(tensor.shape in shapes and id(tensor) not in live for tensor in tensors_in(value)):
            return name
    return None


def tensors_in(value: object) -> Iterator[Shaped[Tensor, "..."]]:
    """Yield the tensors that a value is, or holds in containers or as attributes."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from (tensor for one in value.values() for tensor in tensors_in(one))
    elif isinstance(value, list | tuple | set):
        yield from (tensor for one in value for tensor in tensors_in(one))
    else:  # no further, as objects may refer to each other in a circle
        yield from (one for one in getattr(value, "__dict__", {}).values() if isinstance(one, Tensor))
