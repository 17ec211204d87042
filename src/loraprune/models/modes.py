"""Switch off dropout and autograd within a block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


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
