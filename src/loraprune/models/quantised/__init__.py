"""Weights that are quantised by bitsandbytes or torchao. The only package that uses the internals of such layers.

Knows nothing about LoRA, units or scores.
"""

from __future__ import annotations

from loraprune.models.foreign_state import forget_quantiser
from loraprune.models.quantised.layers import (
    cut_,
    dense_layer,
    kind_of,
    parts,
    restore_,
    size,
    stored,
    write_,
    zero_,
)
from loraprune.models.quantised.models import (
    Quantisation,
    dequantise_,
    loading_options,
    prepare_,
    quantised_layers,
    stored_parameters,
)

__all__ = [
    "Quantisation",
    "cut_",
    "dense_layer",
    "dequantise_",
    "forget_quantiser",
    "kind_of",
    "loading_options",
    "parts",
    "prepare_",
    "quantised_layers",
    "restore_",
    "size",
    "stored",
    "stored_parameters",
    "write_",
    "zero_",
]
