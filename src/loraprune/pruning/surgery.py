"""Irreversible removal of units: base weights, LoRA factors and optimiser state are cut in place.

Cutting equals masking, as AdamW acts on each element alone. Knows nothing about scores or schedules.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from loraprune.errors import GroupMismatchError
from loraprune.groups import Group, Side, Units, attribute_values, kept_entries, sides
from loraprune.models.adapters import (
    STACKS,
    Cut,
    base_layer,
    config_of,
    cuts,
    factors_kept,
    find_module,
    magnitudes,
    set_features,
    trained_factors,
)
from loraprune.models.layerwise.modeling_loraprune import LayerConfig
from loraprune.models.quantised import restore_, stored_parameters
from loraprune.models.streaming import at_hand
from loraprune.pruning.optimizer_state import cut_state_
from loraprune.runtime.processes import take_from_first_


def slice_(
    model: nn.Module,
    groups: Sequence[Group],
    kept: Mapping[str, Units],
    *,
    optimizer: torch.optim.Optimizer | None = None,
) -> tuple[Group, ...]:
    """Remove all units but those in `kept` (by group name, indices into the present units); modifies `model`.

    Parameters keep their identity, so optimiser, scheduler and trainer stay valid; gradients of cut parameters are
    dropped. A graph from before the cut that is still alive cannot be run backward.

    Returns:
        The groups of the smaller model.
    """
    resized = []
    for group in groups:
        units = kept.get(group.name, range(group.units))
        resized.append(_slice_group(model, group, units, optimizer) if len(units) < group.units else group)
    return tuple(resized)


def _slice_group(model: nn.Module, group: Group, kept: Units, optimizer: torch.optim.Optimizer | None) -> Group:
    found: dict[tuple[Any, ...], Tensor] = {}
    """entries that stay, where the tensors are: most sides of a group lose the same ones"""
    for (path, side), spans in sides(group).items():
        module = find_module(model, path)
        with at_hand(module, write=True), factors_kept(module) if side == "in" else nullcontext():
            for cut in cuts(module, side):
                size, device = cut.size, cut.tensor.device
                key = (device, size, *((span.offset, span.width) for span in spans))
                if key not in found:
                    found[key] = torch.from_numpy(kept_entries(size, spans, group.units, kept)).to(device)
                index = found[key]
                _cut(cut, index, optimizer)
                if side == "norm":
                    rescale_norm_(cut.tensor, before=size, after=len(index))
                else:
                    set_features(module, side, len(index))
    smaller = group.resize(len(kept))
    for name, value in attribute_values(group, len(kept)).items():
        set_attribute(model, name, value)
    return smaller


@torch.no_grad()
def _cut(cut: Cut, index: Tensor, optimizer: torch.optim.Optimizer | None) -> None:
    tensor = cut.tensor
    old_shape = tensor.shape
    tensor.grad = None
    cut.keep_(index)
    if optimizer is not None:
        cut_state_(optimizer, tensor, old_shape, cut.dim, index)


def renew_trained_(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Replace all trained parameters by new ones with the same values and optimiser state.

    After a cut DDP needs it: the nodes of autograd that it holds on to know the old shapes.
    """
    fresh: dict[Tensor, nn.Parameter] = {}
    for owner in model.modules():
        for name, parameter in list(owner.named_parameters(recurse=False)):
            if parameter.requires_grad:
                fresh.setdefault(parameter, nn.Parameter(parameter.data))
                setattr(owner, name, fresh[parameter])
    for group in optimizer.param_groups:
        group["params"] = [fresh.get(old, old) for old in group["params"]]
    for old, new in fresh.items():
        if old in optimizer.state:
            optimizer.state[new] = optimizer.state.pop(old)


def changed_layers(model: nn.Module, groups: Sequence[Group], changed: Collection[Side]) -> dict[str, nn.Module]:
    """Return the layers whose weights do not follow from cutting: rescaled norms, and those on the sides that recovery `changed`."""
    spans = (span for group in groups for span in group.spans if span.side == "norm" or span.side in changed)
    return {span.module: base_layer(find_module(model, span.module)) for span in spans}


@torch.no_grad()
def share_(model: nn.Module, layers: Iterable[nn.Module]) -> None:
    """Give every process the weights of layers, and LoRA's factors and DoRA's magnitudes, of the first one."""
    for layer in layers:
        held = {name: tensor.contiguous() for name, tensor in stored_parameters(layer)}
        take_from_first_(held.values())
        restore_(layer, held)
    take_from_first_(each.data for each in (*trained_factors(model), *magnitudes(model)))


@torch.no_grad()
def rescale_norm_(weight: Float[Tensor, " units"], *, before: int, after: int) -> None:
    """Rescale an RMS norm over `after` channels to give its output over `before` channels with the others zero."""
    weight.data.mul_(math.sqrt(before / after))


def set_attribute(model: nn.Module, path: str, value: int) -> None:
    """Set an integer of a module; a layer that shares the model's configuration first gets a separate view of it."""
    owner, name = path.rsplit(".", 1)
    if owner.endswith(".config"):
        module: Any = find_module(model, owner.removesuffix(".config"))
        shared = config_of(model)
        if module.config is shared:
            module.config = LayerConfig(shared)
        setattr(module.config, name, value)
    else:
        setattr(find_module(model, owner), name, value)


def check_groups(model: nn.Module, groups: Sequence[Group]) -> None:
    """Compare every span with the tensors of the model.

    Raises:
        GroupMismatchError: for a path that does not resolve, a span out of bounds, or spans that overlap.
    """
    owned: dict[tuple[str, Side], list[tuple[int, int, str]]] = {}
    for group in groups:
        for span in group.spans:
            stop = span.offset + group.units * span.width
            owned.setdefault((span.module, span.side), []).append((span.offset, stop, group.name))
    for (path, side), ranges in owned.items():
        module = find_module(model, path)
        has_weight = side == "table" or side in STACKS or getattr(base_layer(module), "weight", None) is not None
        sizes = [cut.size for cut in cuts(module, side)] if has_weight else []
        if not sizes:
            raise GroupMismatchError(f"{path!r} has no weight: {type(module).__name__} is not a layer that can be cut")
        size = min(sizes)
        ranges.sort()
        for (_, stop, name), (start, _, other) in pairwise(ranges):
            if start < stop:
                raise GroupMismatchError(f"{path!r} ({side}): groups {name} and {other} own the same entries")
        if ranges[-1][1] > size or ranges[0][0] < 0:
            raise GroupMismatchError(
                f"{path!r} has {size} entries on its {side!r} side, its family expects {ranges[-1][1]}: "
                "the configuration does not describe these weights"
            )
