"""Weights on their way into a GGUF file and back: names, order of rows, precision.

Knows nothing about the head of the file or the tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from loraprune.errors import NumericsError, UnsupportedModelError, VerificationError
from loraprune.export.gguf.architecture import Architecture, Shape

TYPES: Mapping[str, tuple[str, str, float]] = {
    "f32": ("F32", "ALL_F32", 0.0),
    "f16": ("F16", "MOSTLY_F16", 5e-4),
    "bf16": ("BF16", "MOSTLY_BF16", 4e-3),
    "q8_0": ("Q8_0", "MOSTLY_Q8_0", 6e-3),
    "q5_0": ("Q5_0", "MOSTLY_Q5_0", 0.07),
    "q4_0": ("Q4_0", "MOSTLY_Q4_0", 0.13),
}
"""`--quantization` -> its name among tensors and files in gguf, and the largest rounding error of a weight, relative to the largest weight
of its tensor: half a step of the largest block"""
FALLBACK = "F16"
"""of rows whose length is not a multiple of the block"""
ENDS = ("token_embd.weight", "output.weight")
"""kept at 8 bits where others have fewer"""


@dataclass(frozen=True, slots=True)
class Layout:
    """The layout of a model's tensors in a file."""

    architecture: Architecture
    shape: Shape
    names: Any
    """gguf's map of names"""

    def name(self, path: str) -> str:
        """Return the name of a tensor in the file.

        Raises:
            UnsupportedModelError: if the architecture has no place for it.
        """
        found: str | None = self.names.get_name(path, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise UnsupportedModelError(
                f"--format gguf: llama.cpp's {self.architecture.name!r} has no place for {path}; use --format onnx"
            )
        return found

    def leave(self, path: str, tensor: Float[Tensor, "rows ..."]) -> Float[Tensor, "rows ..."]:
        """Return a tensor as llama.cpp stores it."""
        heads = self._heads(path)
        if heads:
            return tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)
        return tensor + self._offset(path)

    def enter(self, path: str, tensor: Float[Tensor, "rows ..."]) -> Float[Tensor, "rows ..."]:
        """Return a tensor as transformers stores it: the inverse of `leave`."""
        heads = self._heads(path)
        if heads:
            return tensor.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)
        return tensor - self._offset(path)

    def _heads(self, path: str) -> int:
        """Return in how many heads rows are put in the other order; 0 for a tensor that stays as it is."""
        counts = {"q_proj": self.shape.heads, "k_proj": self.shape.key_value_heads}
        parts = path.split(".")
        chosen = counts.get(parts[-2]) if self.architecture.interleaved else None
        return chosen[int(parts[2])] if chosen else 0

    def _offset(self, path: str) -> float:
        return self.architecture.norm_offset if "norm" in path else 0.0


def make_layout(architecture: Architecture, shape: Shape) -> Layout:
    """Return the layout of an architecture with so many layers."""
    import gguf

    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    return Layout(architecture, shape, gguf.get_tensor_name_map(kinds[architecture.name], len(shape.heads)))


def weights_of(model: PreTrainedModel) -> Iterator[tuple[str, Float[Tensor, "..."]]]:
    """Yield every weight with its name, a tied one once."""
    yield from ((name, parameter.detach()) for name, parameter in model.named_parameters())


def type_of(name: str, tensor: Float[Tensor, "..."], quantization: str) -> Any:
    """Return the type of a tensor in the file: vectors stay exact, rows that do not fill blocks get 16 bits or more."""
    import gguf

    types = gguf.GGMLQuantizationType
    chosen = types[TYPES[quantization][0]]
    if tensor.ndim == 1:
        return types.F32
    if name in ENDS and chosen in (types.Q4_0, types.Q5_0):
        chosen = types.Q8_0
    block, _ = gguf.GGML_QUANT_SIZES[chosen]
    return chosen if tensor.shape[-1] % block == 0 else types[FALLBACK]


def add_tensors(writer: Any, model: PreTrainedModel, layout: Layout, quantization: str) -> list[str]:
    """Add all weights to a file; return the names of those that could not be quantised as asked.

    Raises:
        NumericsError: if a weight is too large for the precision.
    """
    import gguf

    wanted, left = gguf.GGMLQuantizationType[TYPES[quantization][0]], []
    for path, tensor in weights_of(model):
        name = layout.name(path)
        kind = type_of(name, tensor, quantization)
        with np.errstate(over="ignore"):
            data = gguf.quants.quantize(layout.leave(path, tensor).float().contiguous().numpy(), kind)
        if not np.isfinite(gguf.quants.dequantize(data, kind)).all():
            raise NumericsError(f"--quantization {quantization}: {path} holds values beyond its range; use bf16")
        writer.add_tensor(name, data, raw_dtype=kind)
        if tensor.ndim > 1 and kind != wanted and name not in ENDS:
            left.append(name)
    return left


@torch.no_grad()
def read_back_(model: PreTrainedModel, file: Path, layout: Layout, quantization: str) -> float:
    """Give a model the weights that a file holds; return the largest rounding error, relative to the largest weight of a tensor.

    Modifies `model`.

    Raises:
        VerificationError: if a tensor is missing, unexpected, or different.
    """
    import gguf

    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    stored.pop("rope_freqs.weight", None)
    most = TYPES[quantization][2]
    worst = 0.0
    for path, parameter in weights_of(model):
        tensor = stored.pop(layout.name(path), None)
        if tensor is None:
            raise VerificationError(f"{file.name} lacks {path}; nothing was saved")
        data = gguf.quants.dequantize(np.asarray(tensor.data), tensor.tensor_type)
        found = layout.enter(path, torch.from_numpy(np.array(data, np.float32)).reshape(parameter.shape))
        error = ((found - parameter).abs().max() / parameter.abs().max().clamp_min(1e-12)).item()
        # A sum with the offset of a norm is rounded once.
        if not error <= max(most, 1e-6):
            raise VerificationError(
                f"{file.name} holds other weights than the model: {path} differs by {error:.1e} of its largest; nothing was saved"
            )
        worst = max(worst, error)
        parameter.copy_(found)
    if stored:
        raise VerificationError(f"{file.name} holds {min(stored)}, which the model lacks; nothing was saved")
    return worst
