"""Read, cut and write the weights of layers that bitsandbytes or torchao quantised.

What a layer holds is read as one of the forms of `loraprune.models.quantised.forms`, and cut and written back as such.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from loraprune.errors import ConfigError
from loraprune.models.quantised.forms import NF4_BLOCK, Int8Rows, Nf4Blocks, Quantised

ROWS_AT_A_TIME = 1024
"""rows that are quantised in one go"""
ORIGINAL = "loraprune_original"
"""name under which a layer stores its weight from before the first cut through blocks"""
Layer: TypeAlias = Any
"""a linear layer: its attributes are those of the library that made it"""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the libraries' remarks on import about missing kernels."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


@functools.cache
def library(name: str) -> Any:
    """Import a module of an optional library; once, as keeping it quiet empties the caches of all loggers."""
    with _quiet():
        return importlib.import_module(name)


def kind_of(layer: nn.Module) -> str | None:
    """Return how a layer's weight is quantised; None for a layer that is not."""
    names = {"Int8Params": "8bit", "Params4bit": "4bit", "Int8Tensor": "int8"}
    return names.get(type(getattr(layer, "weight", None)).__name__)


def stored(layer: Layer) -> Float[Tensor, "out in_ *kernel"] | Quantised:
    """Return a layer's weight (out, in) as it is stored; of a convolution with its kernel behind.

    Raises:
        ConfigError: for a weight that cannot be read.
    """
    kind, weight = kind_of(layer), layer.weight
    if kind == "8bit":
        scales = weight.SCB if weight.SCB is not None else layer.state.SCB
        return Int8Rows(weight.data, scales)
    if kind == "int8":
        if weight.qdata.ndim != 2 or weight.scale.numel() != len(weight.qdata) or weight.act_quant_kwargs is not None:
            raise ConfigError(
                "its int8 weight has another form than one scale a row: load it with Int8WeightOnlyConfig()"
            )
        return Int8Rows(weight.qdata, weight.scale.flatten() * 127)
    if kind == "4bit":
        state = weight.quant_state
        if getattr(state, "packing_format_for_cpu", False):
            raise ConfigError(
                "its 4-bit weight was repacked by a forward pass in evaluation on this CPU, and LoRA would get no gradient: load "
                "the model again and attach LoRA before any forward pass"
            )
        if state is None or state.quant_type != "nf4" or state.blocksize != NF4_BLOCK or weight.dtype != torch.uint8:
            raise ConfigError(
                f"its 4-bit weight is not nf4 in blocks of {NF4_BLOCK}: load it with bnb_4bit_quant_type='nf4'"
            )
        absmax = state.absmax
        if state.nested:
            blockwise = library("bitsandbytes.functional").dequantize_blockwise
            absmax = blockwise(absmax, state.state2) + state.offset
        return Nf4Blocks(weight.data.flatten(), absmax.float(), size(layer))
    return cast("Tensor", weight).detach()


def size(layer: Layer) -> tuple[int, int]:
    """Return (out, in) of a quantised layer."""
    return layer.out_features, layer.in_features


def _put(layer: Layer, weight: Quantised) -> None:
    """Store a weight in a layer of its kind."""
    layer.out_features, layer.in_features = weight.shape
    if isinstance(weight, Nf4Blocks):
        bitsandbytes, before = library("bitsandbytes"), layer.weight.quant_state
        shape = torch.Size((weight.shape[0], weight.width))
        state = bitsandbytes.functional.QuantState(
            absmax=weight.absmax, shape=shape, code=before.code, blocksize=NF4_BLOCK, quant_type="nf4", dtype=before.dtype
        )  # fmt: skip
        layer.weight = bitsandbytes.nn.Params4bit(
            weight.packed.view(-1, 1), requires_grad=False, quant_state=state, blocksize=NF4_BLOCK,
            compress_statistics=False, quant_type="nf4", bnb_quantized=True, module=layer,
        )  # fmt: skip
        layer.quant_state = state
    elif kind_of(layer) == "8bit":
        parameter = library("bitsandbytes.nn").Int8Params
        codes = weight.codes.contiguous()
        layer.weight = parameter(codes, requires_grad=False, has_fp16_weights=False, CB=codes, SCB=weight.absmax)
    else:
        before = layer.weight
        tensor = type(before)(
            weight.codes.contiguous(), weight.absmax[:, None] / 127, [1, weight.shape[1]], before.dtype
        )
        layer.weight = nn.Parameter(tensor, requires_grad=False)


def _quantise(kind: str | None, weight: Float[Tensor, "out in_"]) -> Quantised:
    """Return a matrix in the form of a kind; scales of 4-bit blocks stay in float32, so that later cuts round nothing."""
    if kind == "4bit":
        function = library("bitsandbytes.functional").quantize_4bit
        packed, absmax = [], []
        for rows in weight.split(ROWS_AT_A_TIME):
            padded = nn.functional.pad(rows, (0, -rows.shape[1] % NF4_BLOCK))
            codes, state = function(padded.contiguous(), blocksize=NF4_BLOCK, quant_type="nf4")
            packed.append(codes.flatten())
            absmax.append(state.absmax)
        return Nf4Blocks(torch.cat(packed), torch.cat(absmax), (weight.shape[0], weight.shape[1]))
    most = weight.abs().amax(1).float()
    scale = torch.where(most > 0, most, torch.ones_like(most))
    return Int8Rows((weight / scale[:, None] * 127).round().to(torch.int8), most)


@dataclass(slots=True)
class _Original:
    """A 4-bit weight before the first cut through its blocks, on the CPU, and its remaining rows and columns."""

    weight: Quantised
    left: list[Tensor]

    def matrix(self) -> Float[Tensor, "out in_"]:
        """Return what is left of it."""
        return self.weight.rows(0, self.weight.shape[0])[self.left[0]][:, self.left[1]]


def cut_(layer: Layer, dim: int, index: Int[Tensor, " left"]) -> None:
    """Keep some rows (`dim` 0) or columns (1) of a quantised weight.

    A block of 4-bit numbers is 64 neighbours of a row with one scale. Where columns are removed from the middle of a block, its numbers
    move to other blocks with other scales and are rounded again; nothing else is rounded. Such a weight is always quantised from what it
    was before the first such cut: rounding it repeatedly would nearly double the error.
    Source: Dettmers et al., QLoRA (arXiv 2305.14314), section 2, on block-wise quantisation; `quantize_4bit` of bitsandbytes.
    """
    weight = stored(layer)
    assert not isinstance(weight, Tensor)
    original = vars(layer).get(ORIGINAL)
    smaller = None if original else weight.select(dim, index)
    if smaller is None:
        if original is None:
            assert isinstance(weight, Nf4Blocks)
            moved = Nf4Blocks(weight.packed.cpu(), weight.absmax.cpu(), weight.shape)
            original = _Original(moved, [torch.arange(count) for count in weight.shape])
            setattr(layer, ORIGINAL, original)
        original.left[dim] = original.left[dim][index.cpu()]
        smaller = _quantise("4bit", original.matrix().to(weight.device))
    _put(layer, smaller)


def write_(layer: Layer, weight: Float[Tensor, "out in_"]) -> None:
    """Quantise a matrix into a layer."""
    layer.__dict__.pop(ORIGINAL, None)
    _put(layer, _quantise(kind_of(layer), weight.float()))


def zero_(layer: Layer, kept: Bool[Tensor, "out in_"]) -> None:
    """Write zeros into all weights but those in `kept`; the others keep codes and scales."""
    weight = stored(layer)
    assert not isinstance(weight, Tensor)
    _put(layer, weight.zeroed(kept.to(weight.device)))


def parts(weight: Shaped[Tensor, "..."] | Quantised) -> dict[str, Shaped[Tensor, "..."]]:
    """Return codes and scales of a weight by the names of their fields; a dense one is its own only part."""
    if isinstance(weight, Tensor):
        return {"": weight}
    codes = {"codes": weight.codes} if isinstance(weight, Int8Rows) else {"packed": weight.packed}
    return {**codes, "absmax": weight.absmax}


@torch.no_grad()
def restore_(layer: Layer, tensors: Mapping[str, Shaped[Tensor, "..."]]) -> None:
    """Give a layer of the same shape the parameters that `stored_parameters` returned."""
    for name, tensor in tensors.items():
        if "." not in name:
            layer.get_parameter(name).copy_(tensor)
    codes = {name.partition(".")[2]: value.to(layer.weight.device) for name, value in tensors.items() if "." in name}
    if codes:
        layer.__dict__.pop(ORIGINAL, None)
        _put(layer, Nf4Blocks(**codes, shape=size(layer)) if "packed" in codes else Int8Rows(**codes))


def dense_layer(layer: Layer, weight: Float[Tensor, "out in_"]) -> nn.Module:
    """Return the layer from before quantisation with a matrix as its weight; bias and buffers are the quantised one's."""
    out, in_ = weight.shape
    transposed = getattr(layer, "source_cls", None) is Conv1D
    with torch.device("meta"):
        dense: nn.Module = Conv1D(out, in_) if transposed else nn.Linear(in_, out, bias=layer.bias is not None)
    dense.weight = nn.Parameter(weight.T.contiguous() if transposed else weight, requires_grad=False)
    if layer.bias is not None:
        dense.bias = layer.bias
    for name, buffer in layer.named_buffers(recurse=False):
        dense.register_buffer(name, buffer, persistent=False)
    return dense
