"""Switch off dropout, autograd, and checks of inputs within a block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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


@contextmanager
def padding_unchecked(model: torch.nn.Module) -> Iterator[None]:
    """Keep GPT-2 and DeBERTa from searching their inputs for padding, to warn of it: on the meta device inputs have no values."""
    config: Any = model.config
    before = getattr(config, "pad_token_id", None)
    config.pad_token_id = None
    try:
        yield
    finally:
        config.pad_token_id = before
