"""Reversible removal of units: the contribution of a dropped unit is multiplied by zero, shapes stay.

The reference semantics of every fast path. Knows nothing about scores or schedules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import layer_norm
from torch.utils.hooks import RemovableHandle

from loraprune.groups import Group, Side, Span
from loraprune.models.adapters import (
    channels_first,
    channels_last,
    count_columns_,
    cuts,
    find_module,
    magnitudes,
    norm_counted,
)


class Masks:
    """Masks on the inputs of each group's consuming projections, as in z = (x W0 + x B A) * M.

    A projection that feeds an RMS norm over all units is masked at its output too, before the norm sees it. A layer norm takes
    mean and variance of the channels that are left.
    Source: Eq 13.
    """

    def __init__(self, model: nn.Module, groups: Sequence[Group]) -> None:
        self._model, self._groups = model, {group.name: group for group in groups}
        self._masks: dict[tuple[str, str, Side], Tensor] = {}
        self._handles: list[RemovableHandle] = []
        self._stacks: dict[tuple[str, str, Side], tuple[Tensor, Tensor]] = {}
        """weights of experts, which no hook can reach inside their stack: the parameter and its unmasked values"""
        for group in groups:
            for span in _masked_spans(group):
                self._attach(model, group, span)

    def _attach(self, model: nn.Module, group: Group, span: Span) -> None:
        key, masks = (group.name, span.module, span.side), self._masks
        if key in masks:  # another span of a fused projection
            return
        module = find_module(model, span.module)
        cut = next(cuts(module, span.side))
        masks[key] = torch.ones(cut.size, device=cut.tensor.device)

        def mask_input(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            masked = channels_last(module, args[0]) * masks[key].to(args[0].dtype)
            return (channels_first(module, masked), *args[1:])

        def mask_output(_: nn.Module, __: Any, output: Tensor) -> Tensor:
            return output * masks[key].to(output.dtype)

        def norm_channels_left(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            return output if masks[key].all() else norm_left(module, args[0], masks[key].nonzero().squeeze(1))

        if span.side == "expert_in":
            self._stacks[key] = (cut.tensor, cut.tensor.data)
        elif span.side == "router":
            self._handles.append(choose_among(module, masks[key]))
        elif span.side in ("in", "head"):
            self._handles.append(module.register_forward_pre_hook(mask_input, prepend=True))
            if magnitudes(module):
                self._handles.append(module.register_forward_hook(norm_counted, prepend=True))
        elif span.side == "layer_norm":
            self._handles.append(module.register_forward_hook(norm_channels_left))
        else:
            self._handles.append(module.register_forward_hook(mask_output))

    def set(self, kept: Mapping[str, Sequence[int]]) -> None:
        """Let only the units in `kept` (by group name) contribute; groups not named stay as they are."""
        for name, units in kept.items():
            group = self._groups[name]
            for span in _masked_spans(group):
                alive = torch.zeros(group.units, dtype=torch.bool)
                alive[list(units)] = True
                stop = span.offset + group.units * span.width
                mask = self._masks[name, span.module, span.side]
                mask[span.offset : stop] = alive.repeat_interleave(span.width).to(mask)
                if span.side == "expert_in":
                    parameter, values = self._stacks[name, span.module, span.side]
                    parameter.data = values * mask.to(values.dtype)
                if span.side == "in":
                    count_columns_(find_module(self._model, span.module), self._unmasked(span.module))

    def _unmasked(self, path: str) -> Bool[Tensor, " in_"]:
        """Return the input channels of a projection that no group masks."""
        masks = [mask for (_, module, side), mask in self._masks.items() if (module, side) == (path, "in")]
        return torch.stack(masks).all(0)

    def remove(self) -> None:
        """Take all masks off."""
        for _, path, side in self._masks:
            if side == "in":
                module = find_module(self._model, path)
                count_columns_(module, torch.ones_like(self._unmasked(path)))
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for parameter, values in self._stacks.values():
            parameter.data = values
        self._stacks.clear()


def choose_among(router: nn.Module, mask: Float[Tensor, " experts"]) -> RemovableHandle:
    """Restrict a router to the experts in `mask`: it reads only their rows, and its outputs are mapped to the experts' numbers.

    A router chooses inside its forward pass, where no hook reaches, so that it is called a second time with the rows that are left.
    """
    called: list[bool] = []

    def choose(_: nn.Module, args: tuple[Any, ...], output: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if called:  # by the call below, which runs this hook too
            return None
        called.append(True)
        try:
            weight = router.get_parameter("weight").detach()
            chosen = functional_call(router, {"weight": weight[mask.bool()]}, args)
        finally:
            called.clear()
        left = mask.nonzero().squeeze(1)
        return tuple(each if each.is_floating_point() else left[each] for each in chosen)

    return router.register_forward_hook(choose)


def norm_left(norm: Any, x: Float[Tensor, "*shape"], left: Int[Tensor, " left"]) -> Float[Tensor, "*shape"]:
    """Return what a layer norm over the channels `left` alone gives, and zero for the others."""
    x = channels_last(norm, x)
    normed = torch.zeros_like(x)
    normed[..., left] = layer_norm(x[..., left], (len(left),), norm.weight[left], norm.bias[left], norm.eps)
    return channels_first(norm, normed)


def _masked_spans(group: Group) -> list[Span]:
    """Return the input and layer norm spans, and the output spans of projections behind which an RMS norm sees all units."""
    normed = any(span.side == "norm" for span in group.spans)
    sides = {"in", "head", "layer_norm", "router", "expert_in"} | ({"out"} if normed else set())
    return [span for span in group.spans if span.side in sides]
