"""Switch off dropout, layer skipping and autograd within a block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

LAYERDROP = "layerdrop"
"""attribute of transformers' encoders and decoders: the share of layers that a step skips"""


@contextmanager
def dropout_off(model: torch.nn.Module) -> Iterator[None]:
    """Switch dropout off, and give every submodule its own mode back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """Switch dropout and autograd off, and give every submodule its own mode back afterwards."""
    with dropout_off(model), torch.inference_mode():
        yield


class EveryLayer:
    """Runs all layers of a model that skips some at random while it trains: a layer that was skipped has no score."""

    def __init__(self, model: torch.nn.Module) -> None:
        """Switch skipping off."""
        found = ((module, getattr(module, LAYERDROP, 0)) for module in model.modules())
        self._before = [(module, share) for module, share in found if isinstance(share, float) and share > 0]
        for module, _ in self._before:
            setattr(module, LAYERDROP, 0.0)

    def __bool__(self) -> bool:
        return bool(self._before)

    def end(self) -> None:
        """Give every module its own share back."""
        for module, share in self._before:
            setattr(module, LAYERDROP, share)
