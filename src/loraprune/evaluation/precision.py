"""Compare outputs of models, and compute with wider weights within a block to measure or avoid rounding.

Knows nothing about what made two models differ.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from loraprune.data import draw_rows
from loraprune.evaluation.tasks import Inputs, Prepared, Task
from loraprune.models.adapters import dequantise_adapted_
from loraprune.models.quantised import quantised_layers
from loraprune.models.streaming import is_streamed
from loraprune.runtime.memory import free_memory_bytes

WIDER = {torch.float16: torch.float32, torch.bfloat16: torch.float32, torch.float32: torch.float64}
"""precision -> the next one, which holds all of its values exactly"""
HEADROOM = 1.2
"""free memory needed, as a multiple of what wider weights take in addition"""
ROWS = 8
"""held-out rows that are measured in two precisions"""
NATS = 0.02
"""largest difference of the mean loss in nats: two per cent of a perplexity"""

logger = logging.getLogger(__name__)


@torch.inference_mode()
def logits_of(model: nn.Module, inputs: Inputs) -> Float[Tensor, "..."]:
    """Return a model's logits on the CPU in float32; the model ends in evaluation mode."""
    model.eval()
    one = next(model.parameters())
    placed = {name: _placed(value, one) if isinstance(value, Tensor) else value for name, value in inputs.items()}
    found: Any = model(**placed, return_dict=True)
    spans = ("start_logits", "end_logits")  # what answers a question has two
    logits: Tensor = torch.stack([found[name] for name in spans], -1) if spans[0] in found else found.logits
    return logits.float().cpu()


def _placed(value: Tensor, like: Tensor) -> Tensor:
    """Return an input on the device of a weight, and in its precision if it holds pixels instead of tokens."""
    return value.to(like.device, like.dtype if value.is_floating_point() and like.is_floating_point() else value.dtype)


def difference(one: Float[Tensor, "*shape"], other: Float[Tensor, "*shape"]) -> float:
    """Return the largest difference of two tensors relative to the largest value of the first."""
    return ((one - other).abs().max() / one.abs().max().clamp_min(1e-12)).item()


def rounding_noise(model: PreTrainedModel, inputs: Inputs) -> float | None:
    """Return how far a model's own rounding moves its logits, relative to the largest: its precision against the next wider one.

    bfloat16 is compared with float32, float32 with float64. No two models can be asked to agree more closely. Every weight ends as it was.

    Returns:
        The largest difference; None if memory has no room for the wider weights, or an operation no kernel for them (torch 2.13 has
        none for grouped experts in float64).
    """
    if not has_room_for(model, WIDER[model.dtype]):
        return None
    logits = logits_of(model, inputs)
    try:
        with wider_weights(model):
            return difference(logits_of(model, inputs), logits)
    except RuntimeError as error:
        logger.debug("rounding noise is not measured: %s", error)
        return None


def has_room_for(model: nn.Module, dtype: torch.dtype) -> bool:
    """Return whether memory has room for the weights of a model in a wider precision; never for one whose layers are on disk."""
    if is_streamed(model):
        return False
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


def settle_precision_(model: PreTrainedModel, task: Task, data: Prepared, batch: int) -> None:
    """Convert a bfloat16 model to float32 if its loss on some held-out rows differs between the two.

    Only for a precision that `--dtype auto` chose: a requested precision is kept.
    """
    few = replace(data, held_out=draw_rows(data.held_out, ROWS, seed=0))
    narrow = task.evaluate(model, few, batch).loss
    with wider_weights(model):
        wide = task.evaluate(model, few, batch).loss
    if abs(narrow - wide) <= NATS:
        logger.info(
            "computing in bfloat16, as this CPU multiplies it natively: loss %.3f, in float32 %.3f", narrow, wide
        )
        return
    logger.warning(
        "computing in float32: on %d held-out rows the loss is %.3f in bfloat16 and %.3f in float32",
        len(few.held_out),
        narrow,
        wide,
    )
    placed: torch.nn.Module = model
    placed.float()


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
