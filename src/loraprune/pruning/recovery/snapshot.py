"""Copies of frozen weights, to undo steps that did not help."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from loraprune.models.adapters import base_layer, find_module
from loraprune.models.quantised import restore_, stored_parameters


class Snapshot:
    """The frozen weights of projections, copied to the CPU."""

    def __init__(self, model: nn.Module, paths: Iterable[str]) -> None:
        layers = [base_layer(find_module(model, path)) for path in paths]
        self._former = [(each, {name: t.cpu().clone() for name, t in stored_parameters(each)}) for each in layers]

    def restore_(self) -> None:
        """Give the projections their weights back."""
        for layer, weights in self._former:
            restore_(layer, weights)
