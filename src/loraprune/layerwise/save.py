"""Saving widths that no stock configuration can hold: config.json records them, and modelling code lies in the folder.

Knows nothing about scores or training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from loraprune.adapters import find_module, linear_paths
from loraprune.groups import Group, attribute_values
from loraprune.layerwise.modeling_loraprune import FORMAT, TYPE_PREFIX, auto_map, layerwise_class
from loraprune.layerwise.register import register_type, stock_classes, stock_of
from loraprune.shell import save_tensors


def make_record(model: nn.Module, groups: Sequence[Group], counts: Mapping[str, int]) -> dict[str, Any]:
    """Return the `loraprune` entry of config.json for a sliced model.

    `units` is for pruning it once more; the rest is what the modelling code reads.
    """
    norms = dict.fromkeys(span.module for group in groups for span in group.spans if span.side == "norm")
    return {
        "format": FORMAT,
        "units": {group.name: counts[group.name] for group in groups},
        "linears": {path: list(_weight(model, path).shape) for path in linear_paths(groups)},
        "norms": {path: len(_weight(model, path)) for path in norms},
        "attributes": {
            path: value for group in groups for path, value in attribute_values(group, counts[group.name]).items()
        },
    }


def _weight(model: nn.Module, path: str) -> Tensor:
    weight = find_module(model, path).weight
    assert isinstance(weight, Tensor)
    return weight


def layerwise_config(config: PreTrainedConfig, record: Mapping[str, Any]) -> PreTrainedConfig:
    """Return the configuration of a layer-wise model; `config` is the dense one's, or a layer-wise one's of its kind.

    Raises:
        UnsupportedModelError: if the dense model is no model of transformers.
    """
    stock = stock_of(config)
    classes = stock_classes(stock.model_type)
    model_type = TYPE_PREFIX + stock.model_type
    register_type(model_type)
    values = stock.to_dict() | {"model_type": model_type, "loraprune": dict(record)}
    values |= {"auto_map": dict(auto_map(*classes)), "architectures": None}
    result: PreTrainedConfig = layerwise_class(classes[0]).from_dict(values)
    return result


def save_layerwise(
    model: PreTrainedModel,
    folder: Path,
    *,
    config: PreTrainedConfig,
    groups: Sequence[Group],
    counts: Mapping[str, int],
    dtype: torch.dtype | None = None,
) -> None:
    """Save a sliced, merged `model` with the modelling code that its widths need.

    `config` is the configuration of the model before it was cut, `groups` its groups; `dtype` None keeps the precision.

    Raises:
        UnsupportedModelError: if the dense model is no model of transformers.
    """
    own = layerwise_config(config, make_record(model, groups, counts))
    tensors = model.state_dict()
    save_tensors(own, tensors, folder, dtype=dtype or model.dtype, generation=model.generation_config)
