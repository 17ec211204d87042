"""Calibration rows: which tokens count, which rows are kept aside, and how rows run through a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor, nn

from loraprune.groups import Stream
from loraprune.models.adapters import backbone, no_cache
from loraprune.models.modes import dropout_off

ASIDE = 8
"""one calibration row in so many is kept aside"""


Rows: TypeAlias = Mapping[str, Shaped[Tensor, "rows ..."]]
"""inputs of a model, with labels or without; where there is a mask (rows, seq) of a stream's tokens, padding does not count"""

LABELS = "labels"
"""inputs with the targets, which the layers below the head do not take"""
MASKS: Mapping[Stream, str] = {"input": "attention_mask", "decoder": "decoder_attention_mask"}
"""stream -> the input that marks its positions with a token"""


def present_tokens(rows: Rows) -> dict[Stream, Bool[Tensor, " places"] | slice]:
    """Return which positions of every residual stream hold a token."""
    return {stream: rows[name].flatten().bool() if name in rows else slice(None) for stream, name in MASKS.items()}


def on_device(model: nn.Module, rows: Rows) -> dict[str, Shaped[Tensor, "rows ..."]]:
    """Return rows on the model's device."""
    device = next(model.parameters()).device
    return {name: values.to(device) for name, values in rows.items()}


def rows_aside(count: int) -> Bool[Tensor, " rows"]:
    """Return which rows are kept aside for evaluation: one in `ASIDE`, at least one; a single row is used for both."""
    aside = torch.zeros(count, dtype=torch.bool)
    aside[ASIDE - 1 :: ASIDE] = True
    aside[-1] |= not aside.any()
    return aside


def run(model: nn.Module, rows: Rows, handles: Sequence[Any]) -> None:
    """Run rows through a model without dropout, and remove the hooks that traced it."""
    try:
        with dropout_off(model), torch.no_grad():
            inputs = {name: values for name, values in rows.items() if name != LABELS}
            backbone(model)(**inputs, **no_cache(model))  # without the head, whose logits would take the most memory
    finally:
        for handle in handles:
            handle.remove()
