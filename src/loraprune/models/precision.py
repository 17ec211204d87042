"""Compute with wider weights within a block, so that the rounding of the usual precision can be measured or avoided."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from loraprune.models.adapters import dequantise_adapted_
from loraprune.models.quantised import quantised_layers
from loraprune.runtime.memory import free_memory_bytes

WIDER = {torch.float16: torch.float32, torch.bfloat16: torch.float32, torch.float32: torch.float64}
"""precision -> the next one, which holds all of its values exactly"""
HEADROOM = 1.2
"""free memory needed, as a multiple of what wider weights take in addition"""


def has_room_for(model: nn.Module, dtype: torch.dtype) -> bool:
    """Return whether memory has room for the weights of a model in a wider precision."""
    device = next(model.parameters()).device
    if device.type == "mps" and dtype == torch.float64:
        return False  # it has no such numbers
    dense = sum(tensor.numel() * (dtype.itemsize - tensor.itemsize) for tensor in _narrower(model, dtype))
    # An upper bound: 4-bit codes are stored two to a byte.
    codes = (tensor for layer in quantised_layers(model).values() for tensor in layer.parameters())
    quantised = sum(2 * tensor.numel() * dtype.itemsize for tensor in codes)
    return HEADROOM * (dense + quantised) < free_memory_bytes(device)


@contextmanager
def wider_weights(model: PreTrainedModel) -> Iterator[None]:
    """Give the weights of a model its next wider precision; afterwards each is what it was, bit for bit."""
    narrow = [(tensor, tensor.dtype) for tensor in _narrower(model, WIDER[model.dtype])]
    _cast_([tensor for tensor, _ in narrow], WIDER[model.dtype])
    try:
        yield
    finally:
        for tensor, dtype in narrow:
            _cast_([tensor], dtype)


def compute_in_float32_(model: PeftModel) -> frozenset[str]:
    """Give an adapted model 32-bit weights, dequantised where they are quantised, if memory has room for them.

    Merging then rounds nothing, and what is compared afterwards differs by the order of sums alone.

    Returns:
        The paths of the layers that were quantised, which `merge_lora` needs to know.
    """
    if not has_room_for(model, torch.float32):
        return frozenset()
    dequantised = dequantise_adapted_(model, torch.float32)
    _cast_(_narrower(model, torch.float32), torch.float32)
    return dequantised


def _narrower(model: nn.Module, dtype: torch.dtype) -> list[Tensor]:
    """Return the floating-point parameters and buffers that are narrower than `dtype`."""
    quantised = {id(tensor) for layer in quantised_layers(model).values() for tensor in layer.parameters()}
    every = (*model.parameters(), *model.buffers())
    return [
        each for each in every
        if each.is_floating_point() and id(each) not in quantised and each.itemsize < dtype.itemsize
    ]  # fmt: skip


def _cast_(tensors: list[Tensor], dtype: torch.dtype) -> None:
    for tensor in tensors:
        tensor.data = tensor.data.to(dtype)
