"""Write configurations with widths that no stock one can hold: config.json records them, and the folder has modelling code.

Knows nothing about scores or training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from loraprune.families import find_groups
from loraprune.families.query_heads import query_heads_left
from loraprune.groups import Group, attribute_values, sides
from loraprune.models.adapters import cuts, features, find_module
from loraprune.models.layerwise.modeling_loraprune import FORMAT, TYPE_PREFIX, auto_map, layerwise_class
from loraprune.models.layerwise.register import register_type, stock_config_class, stock_of


def make_record(model: PreTrainedModel, groups: Sequence[Group], counts: Mapping[str, int]) -> dict[str, Any]:
    """Return the `loraprune` entry of config.json for a sliced model.

    `units` and `query_heads` are for pruning it once more; the rest is what the modelling code reads, with paths below the model
    without its head.
    """
    shapes: dict[str, list[int]] = {}
    attributes: dict[str, int] = {}
    columns: dict[str, int] = {}
    for group in groups:
        for path, side in sides(group):
            module: Any = find_module(model, path)
            if side == "head":
                columns[path] = module.in_features
                continue
            shapes |= {f"{path}.{cut.name}": list(cut.tensor.shape) for cut in cuts(module, side)}
            attributes |= {f"{path}.{name}": getattr(module, name) for name in features(module, side)}
        attributes |= attribute_values(group, counts[group.name])
    left = {group.name: query_heads_left(group, counts[group.name]) for group in groups}
    heads = {name: count for name, count in left.items() if count is not None}
    head = "" if model.base_model is model else f"{model.base_model_prefix}."
    return {
        "format": FORMAT,
        "units": {group.name: group.parts if group.kind == "query" else counts[group.name] for group in groups},
        "shapes": {path.removeprefix(head): shape for path, shape in shapes.items()},
        "attributes": {path.removeprefix(head): value for path, value in attributes.items()},
    } | {name: entry for name, entry in (("head", columns), ("query_heads", heads)) if entry}


def layerwise_config(config: PreTrainedConfig, record: Mapping[str, Any]) -> PreTrainedConfig:
    """Return the configuration of a layer-wise model; `config` is the dense one's, or a layer-wise one's of its kind.

    Raises:
        UnsupportedModelError: if the dense model is no model of transformers.
    """
    stock = stock_of(config)
    stock_class = stock_config_class(stock.model_type)
    model_type = TYPE_PREFIX + stock.model_type
    register_type(model_type)
    values = stock.to_dict() | {"model_type": model_type, "loraprune": dict(record)}
    values |= {"auto_map": dict(auto_map(stock_class)), "architectures": None}
    result: PreTrainedConfig = layerwise_class(stock_class).from_dict(values)
    return result


def layerwise_for(
    model: PreTrainedModel, config: PreTrainedConfig, groups: Sequence[Group], counts: Mapping[str, int]
) -> PreTrainedConfig:
    """Return the layer-wise configuration of a sliced, merged `model`.

    `config` is the configuration of the model before it was cut, `groups` its groups that `counts` names; the others are whole.

    Raises:
        UnsupportedModelError: if the dense model is no model of transformers.
    """
    counted = {group.name: group for group in groups}
    every = [counted.get(group.name, group) for group in find_groups(config)]
    whole = {group.name: group.units for group in every}
    return layerwise_config(config, make_record(model, every, whole | dict(counts)))
