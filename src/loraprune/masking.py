"""Reversible removal of units: what a dropped unit would contribute is multiplied by zero, shapes stay.

The reference semantics of every fast path. Knows nothing about scores or schedules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from loraprune.adapters import cuts, find_module
from loraprune.groups import Group, Side, Span


class Masks:
    """Masks on the inputs of each group's consuming projections, as in z = (x W0 + x B A) * M.

    A projection that feeds an RMS norm over all units is masked at its output too, before the norm sees it.
    Source: Eq 13.
    """

    def __init__(self, model: nn.Module, groups: Sequence[Group]) -> None:
        self._groups = {group.name: group for group in groups}
        self._masks: dict[tuple[str, str, Side], Tensor] = {}
        self._handles: list[RemovableHandle] = []
        for group in groups:
            for span in _masked_spans(group):
                self._attach(model, group, span)

    def _attach(self, model: nn.Module, group: Group, span: Span) -> None:
        key, masks = (group.name, span.module, span.side), self._masks
        if key in masks:  # another span of a fused projection
            return
        module = find_module(model, span.module)
        cut = next(cuts(module, span.side))
        masks[key] = torch.ones(cut.tensor.shape[cut.dim], device=cut.tensor.device)

        def mask_input(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (args[0] * masks[key].to(args[0].dtype), *args[1:])

        def mask_output(_: nn.Module, __: Any, output: Tensor) -> Tensor:
            return output * masks[key].to(output.dtype)

        if span.side == "in":
            self._handles.append(module.register_forward_pre_hook(mask_input, prepend=True))
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

    def remove(self) -> None:
        """Take all masks off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


def _masked_spans(group: Group) -> list[Span]:
    """Return the input spans, and the output spans of projections behind which a norm sees all units."""
    normed = any(span.side == "norm" for span in group.spans)
    return [span for span in group.spans if span.side == "in" or (span.side == "out" and normed)]
