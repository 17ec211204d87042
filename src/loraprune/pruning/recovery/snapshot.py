"""Copies of frozen weights, and of DoRA's magnitudes, which follow them, to undo steps that did not help."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from loraprune.models.adapters import base_layer, find_module, magnitudes
from loraprune.models.quantised import restore_, stored_parameters


class Snapshot:
    """The frozen weights of projections and all magnitudes of DoRA, copied to the CPU."""

    def __init__(self, model: nn.Module, paths: Iterable[str]) -> None:
        layers = [base_layer(find_module(model, path)) for path in paths]
        self._former = [(each, {name: t.cpu().clone() for name, t in stored_parameters(each)}) for each in layers]
        self._magnitudes = [(each, each.detach().cpu().clone()) for each in magnitudes(model)]

    def restore_(self) -> None:
        """Give the projections their weights back."""
        for layer, weights in self._former:
            restore_(layer, weights)
        for magnitude, values in self._magnitudes:
            magnitude.data.copy_(values)
