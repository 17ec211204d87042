"""LoRA on the projections of groups. The only package that uses PEFT's internals.

Knows nothing about scores or plans.
"""

from __future__ import annotations

from loraprune.models.adapters.cuts import ADAPTER, STACKS, Cut, count_parameters, cuts, features, set_features
from loraprune.models.adapters.kinds import check_kind
from loraprune.models.adapters.lora import (
    KEPT_WEIGHTS,
    Projection,
    attach_lora,
    carries_adapter,
    dense_for_a_while,
    factors,
    head_paths,
    linear_paths,
    lora_plus_optimizer,
    lora_weights,
    projection,
    projection_of,
    trained_factors,
    zero_weights_,
)
from loraprune.models.adapters.magnitudes import count_columns_, factors_kept, has_magnitudes, magnitudes, norm_counted
from loraprune.models.adapters.merging import dequantise_adapted_, merge_lora, merging_error
from loraprune.models.adapters.modules import (
    backbone,
    base_layer,
    base_model,
    channels_first,
    channels_last,
    config_of,
    find_module,
    is_channels_first,
    is_transposed,
    kernel_size,
    no_cache,
    read_columns,
)

__all__ = [
    "ADAPTER",
    "KEPT_WEIGHTS",
    "STACKS",
    "Cut",
    "Projection",
    "attach_lora",
    "backbone",
    "base_layer",
    "base_model",
    "carries_adapter",
    "channels_first",
    "channels_last",
    "check_kind",
    "config_of",
    "count_columns_",
    "count_parameters",
    "cuts",
    "dense_for_a_while",
    "dequantise_adapted_",
    "factors",
    "factors_kept",
    "features",
    "find_module",
    "has_magnitudes",
    "head_paths",
    "is_channels_first",
    "is_transposed",
    "kernel_size",
    "linear_paths",
    "lora_plus_optimizer",
    "lora_weights",
    "magnitudes",
    "merge_lora",
    "merging_error",
    "no_cache",
    "norm_counted",
    "projection",
    "projection_of",
    "read_columns",
    "set_features",
    "trained_factors",
    "zero_weights_",
]
