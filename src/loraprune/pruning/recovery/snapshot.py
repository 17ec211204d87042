"""Copies of frozen weights, and of DoRA's magnitudes, which follow them, to undo steps that did not help."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from loraprune.models.adapters import base_layer, find_module, magnitudes
from loraprune.models.quantised import restore_, stored_parameters
from loraprune.models.streaming import at_hand
from loraprune.runtime.spool import Spool


class Snapshot:
    """Copies of the frozen weights of projections, most of them in a file, and of all magnitudes of DoRA."""

    def __init__(self, model: nn.Module, paths: Iterable[str]) -> None:
        self._layers = {path: base_layer(find_module(model, path)) for path in paths}
        self._spool, self._names = Spool(), dict[str, list[str]]()
        for path, layer in self._layers.items():
            with at_hand(layer):
                parts = dict(stored_parameters(layer))
                self._names[path] = list(parts)
                for name, tensor in parts.items():
                    self._spool.add(f"{path} {name}", tensor)
        self._magnitudes = [(each, each.detach().cpu().clone()) for each in magnitudes(model)]

    def restore_(self) -> None:
        """Give the projections their weights back."""
        for path, layer in self._layers.items():
            with at_hand(layer, write=True):
                restore_(layer, {name: self._spool[f"{path} {name}"] for name in self._names[path]})
        for magnitude, values in self._magnitudes:
            magnitude.data.copy_(values)
