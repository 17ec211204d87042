"""llama.cpp's name for a model, and the model's figures in the header of a GGUF file.

Knows nothing about tensors or files. Sources: llama.cpp's `src/models/*.cpp` and `src/llama-model.cpp` (commit 0c1e57098): which keys
an architecture reads, which of the two orders of rotated channels it has, and that only `deci` builds a dense decoder layer from that
layer's own counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig

from loraprune.errors import UnsupportedModelError
from loraprune.families import find_groups
from loraprune.families.base import head_size
from loraprune.families.query_heads import query_heads
from loraprune.groups import layer_of
from loraprune.models.layerwise.register import stock_of

LAYERWISE = "deci"


@dataclass(frozen=True, slots=True)
class Architecture:
    """One architecture of llama.cpp."""

    name: str
    interleaved: bool = False
    """rotates neighbouring channels, where transformers rotates the halves of a head: rows of q and k are put in that order"""
    norm_offset: float = 0.0
    """added to the weights of norms, which transformers keeps relative to it"""
    as_layerwise: bool = False
    """whether `deci` computes the same"""
    full_heads: bool = False
    """takes the hidden size for the width of all query heads"""


ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture("llama", interleaved=True, as_layerwise=True),
    "mistral": Architecture("llama", interleaved=True, as_layerwise=True),
    "granite": Architecture("granite", interleaved=True),
    "qwen2": Architecture("qwen2", as_layerwise=True, full_heads=True),
    "qwen3": Architecture("qwen3"),
    "gemma": Architecture("gemma", norm_offset=1.0),
}
"""model type of transformers -> architecture"""


@dataclass(frozen=True, slots=True)
class Shape:
    """The widths of a decoder, layer by layer."""

    heads: Sequence[int]
    key_value_heads: Sequence[int]
    ffn: Sequence[int]
    head_size: int

    @property
    def is_uniform(self) -> bool:
        """Return whether all layers are alike."""
        return all(len(set(counts)) == 1 for counts in (self.heads, self.key_value_heads, self.ffn))


def shape_of(config: PreTrainedConfig) -> Shape:
    """Return the widths of a model, layer-wise or not."""
    stock, kept = stock_of(config), {group.name: group for group in find_groups(config)}
    units: dict[str, dict[int, int]] = {"attention": {}, "ffn": {}}
    heads: dict[int, int] = {}
    for group in kept.values():
        layer = int(str(layer_of(group)).rpartition(".")[2])
        units[group.kind][layer] = group.units
        if group.kind == "attention":
            heads[layer] = group.units * query_heads(group)
    layers = range(stock.num_hidden_layers)
    attention, ffn = ([units[kind][layer] for layer in layers] for kind in ("attention", "ffn"))
    return Shape([heads[layer] for layer in layers], attention, ffn, head_size(stock))


def find_architecture(config: PreTrainedConfig) -> Architecture:
    """Return the architecture that holds a model.

    Raises:
        UnsupportedModelError: if none does.
    """
    stock = stock_of(config)
    if stock.model_type not in ARCHITECTURES:
        raise UnsupportedModelError(
            f"--format gguf: models of type {stock.model_type!r} are not written; {', '.join(ARCHITECTURES)} are. For others run "
            "llama.cpp's convert_hf_to_gguf.py on the folder (on a padded one where layers differ), or use --format onnx"
        )
    found = ARCHITECTURES[stock.model_type]
    _check_settings(stock)
    shape = shape_of(config)
    fits = not found.full_heads or shape.heads[0] * shape.head_size == stock.hidden_size
    if shape.is_uniform and fits:
        return found
    if not found.as_layerwise:
        raise UnsupportedModelError(
            f"--format gguf: llama.cpp has no {stock.model_type!r} whose layers differ in width, only decoders of Llama's kind "
            f"({', '.join(name for name, each in ARCHITECTURES.items() if each.as_layerwise)}); export it with --format padded, "
            "and that folder with --format gguf"
        )
    return Architecture(LAYERWISE, interleaved=True)


def _check_settings(config: PreTrainedConfig) -> None:
    """Refuse what the architectures do not compute."""
    llama = ARCHITECTURES[config.model_type].name == "llama"
    ropes = ("default", "linear", "llama3") if llama else ("default", "linear")
    kind = rope_of(config).get("rope_type", "default")
    activation = getattr(config, "hidden_act", "silu")
    biased = [name for name in ("attention_bias", "mlp_bias") if getattr(config, name, False) and not llama]
    wrong = [f"positions of rope_type {kind!r} are not; {', '.join(ropes)} are"] if kind not in ropes else []
    wrong += [f"the option {name} is not" for name in biased]
    if activation not in (("gelu_pytorch_tanh", "gelu") if config.model_type == "gemma" else ("silu",)):
        wrong.append(f"the activation {activation!r} is not")
    if wrong:
        raise UnsupportedModelError(
            f"--format gguf: {config.model_type!r} is written, but {'; '.join(wrong)}. Use --format onnx"
        )


def rope_of(config: PreTrainedConfig) -> Mapping[str, Any]:
    """Return the parameters of rotary positions."""
    return dict(getattr(config, "rope_parameters", None) or {"rope_theta": getattr(config, "rope_theta", 10000.0)})


def context_length(config: PreTrainedConfig) -> int:
    """Return the number of tokens for which both programs agree: llama.cpp's Llama has no sliding window."""
    window = getattr(config, "sliding_window", None)
    slides = window is not None and getattr(config, "use_sliding_window", True)
    return min(config.max_position_embeddings, window) if slides else config.max_position_embeddings


def rope_factors(config: PreTrainedConfig) -> list[float] | None:
    """Return the divisor of each frequency under llama3 scaling, for `rope_freqs.weight`; None without it.

    Source: "Llama 3.1" scaling as in transformers' `_compute_llama3_parameters`: low frequencies are divided by `factor`, high ones
    stay, those between go over smoothly.
    """
    rope = rope_of(config)
    if rope.get("rope_type") != "llama3":
        return None
    size, former = head_size(config), rope["original_max_position_embeddings"]
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    found = []
    for place in range(0, size, 2):
        turns = former / (2 * math.pi * rope["rope_theta"] ** (place / size))
        smooth = min(1.0, max(0.0, (turns - low) / (high - low)))
        found.append(1 / ((1 - smooth) / factor + smooth))
    return found
