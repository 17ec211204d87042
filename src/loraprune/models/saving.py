"""Save a pruned model as a stock checkpoint that plain `from_pretrained` loads, if one can hold its widths.

Knows nothing about scores or training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel

from loraprune.families.base import families, find_groups, head_size
from loraprune.families.depth import gone_layers, renumbered, shallower
from loraprune.groups import HEADS, Group, Kind, layer_of
from loraprune.models.auto_classes import find_head
from loraprune.models.embeddings import config_as_tied
from loraprune.models.empty import MAX_SHARD_SIZE, save_tensors
from loraprune.models.layerwise.register import stock_of
from loraprune.models.layerwise.save import layerwise_for
from loraprune.models.opening import quiet
from loraprune.models.streaming import at_hand, is_streamed, save_streamed


def config_sizes(groups: Sequence[Group], counts: Mapping[str, int]) -> dict[str, int | float] | None:
    """Return the config keys that the counts change, or None if no stock keys can hold them.

    Layers may not differ, parts of a group neither, and a group without keys must be whole; layers that keep nothing do not count.
    """
    sizes: dict[str, int | Fraction] = {}
    gone = gone_layers(counts)
    for group in groups:
        if layer_of(group) in gone:
            continue
        if not group.sizes and not (group.whole and counts[group.name] == group.units):
            return None
        if counts[group.name] % group.parts:
            return None
        for key, each in group.sizes.items():
            if sizes.setdefault(key, each * counts[group.name]) != each * counts[group.name]:
                return None
    return {key: _number(value) for key, value in sizes.items()}


def layer_sizes(groups: Sequence[Group], counts: Mapping[str, int]) -> dict[str, list[int | float]]:
    """Return the config keys of every layer with their values; where there is no key, the kept units of each kind."""
    sizes: dict[str, list[int | float]] = {}
    for group in groups:
        for key, each in (group.sizes or {f"{group.kind} units": 1}).items():
            sizes.setdefault(key, []).append(_number(each * counts[group.name]))
    return sizes


def _number(value: int | Fraction) -> int | float:
    """Return a value as config.json can hold it."""
    return int(value) if value.denominator == 1 else float(value)


def stock_config(config: PreTrainedConfig, sizes: Mapping[str, int | float]) -> PreTrainedConfig | None:
    """Return a stock configuration with other widths, or None if transformers has none that can hold them.

    A family's stand-in is tried where its own configuration class refuses the widths. `config` may be a layer-wise model's.
    """
    config = stock_of(config)
    changed: dict[str, Any] = dict(sizes)
    if sizes.get("num_attention_heads") not in (None, getattr(config, "num_attention_heads", None)):
        changed["head_dim"] = head_size(config)
    stand_in = families.get(config.model_type).stand_in(config)
    for values in (config.to_dict(), stand_in):
        if values is None:
            continue
        merged: Any = dict(values)
        for key, value in changed.items():
            merged = _with(merged, key.split("."), value)
        try:
            with quiet():
                result = CONFIG_MAPPING[str(merged["model_type"])].from_dict(merged)
        except (StrictDataclassError, ValueError):
            continue
        assert isinstance(result, PreTrainedConfig)
        return result
    return None


def _with(values: Any, path: Sequence[str], value: Any) -> Any:
    """Return nested dictionaries and lists with another value in one place."""
    if not path:
        return value
    if isinstance(values, Mapping):
        return {**values, path[0]: _with(values.get(path[0]), path[1:], value)}
    return [_with(each, path[1:], value) if str(place) == path[0] else each for place, each in enumerate(values)]


def storable_kinds(config: PreTrainedConfig, groups: Sequence[Group]) -> tuple[Kind, ...]:
    """Return the kinds of which a stock checkpoint of this model can hold a smaller number of units, the others whole."""
    found = []
    for kind in dict.fromkeys(group.kind for group in groups):
        members = [group for group in groups if group.kind == kind]
        storable = storable_counts(config, members)
        fewest = min(group.units for group in members)
        equal = {group.name: 1 for group in members}
        stages = {group.name: group.units // fewest for group in members}  # which may be multiples of each other
        trials = (
            {name: times * units for name, times in multiples.items()}
            for units in range(1, max(2, fewest))
            for multiples in (stages, equal)
        )
        with quiet():
            if any(storable(trial) for trial in trials):
                found.append(kind)
    return tuple(found)


def storable_counts(config: PreTrainedConfig, groups: Sequence[Group]) -> Callable[[Mapping[str, int]], bool]:
    """Return a function that answers whether a stock checkpoint of this model can hold some counts."""
    known: dict[tuple[tuple[str, int | float], ...], bool] = {}
    # Widths of FFNs and convolutions are free numbers in every configuration: only heads decide.
    free = {key for group in groups if group.kind not in HEADS for key in group.sizes}

    def storable(counts: Mapping[str, int]) -> bool:
        sizes = config_sizes(groups, counts)
        if sizes is None:
            return False
        key = tuple(sorted((name, size) for name, size in sizes.items() if name not in free))
        if key not in known:
            known[key] = stock_config(config, sizes) is not None
        return known[key]

    return storable


def stock_for(config: PreTrainedConfig, groups: Sequence[Group], counts: Mapping[str, int]) -> PreTrainedConfig | None:
    """Return the stock configuration that holds some counts, without layers that are empty; None where none can.

    `config` is the dense model's configuration, `groups` its groups that `counts` names; those that it does not name are whole.
    """
    others = [group for group in find_groups(config) if group.name not in counts]
    sizes = config_sizes([*groups, *others], {group.name: group.units for group in others} | dict(counts))
    return stock_config(shallower(config, counts), sizes) if sizes is not None else None


def save_model(
    model: PreTrainedModel,
    folder: Path,
    *,
    config: PreTrainedConfig,
    groups: Sequence[Group],
    counts: Mapping[str, int],
    dtype: torch.dtype | None = None,
    max_shard_size: str = MAX_SHARD_SIZE,
) -> None:
    """Save a sliced, merged `model` as a stock checkpoint where one can hold its widths, else with modelling code.

    `config` is the dense model's configuration, `groups` its groups that could lose units; `dtype` None keeps the precision.

    Raises:
        UnsupportedModelError: if widths need modelling code and the dense model is no model of transformers.
    """
    config = config_as_tied(config, model)
    own = stock_for(config, groups, counts)
    described = own or layerwise_for(model, config, groups, counts)
    if is_streamed(model):
        save_streamed(
            model,
            described,
            folder,
            dtype=dtype or model.dtype,
            head=find_head(model.config),
            max_shard_size=max_shard_size,
        )
        return
    tensors = renumbered(model.state_dict(), counts) if own else model.state_dict()
    save_tensors(
        described, tensors, folder, dtype=dtype or model.dtype,
        generation=getattr(model, "generation_config", None), head=find_head(model.config), max_shard_size=max_shard_size,
    )  # fmt: skip


@torch.no_grad()
def round_weights_(model: nn.Module, dtype: torch.dtype) -> None:
    """Give every weight the value that it will have when saved in `dtype`; the precision of computation stays."""
    for parameter in _others(model, dtype):
        parameter.copy_(parameter.to(dtype))


@torch.no_grad()
def cast_weights_(model: nn.Module, dtype: torch.dtype) -> None:
    """Give a model the precision of its file, one weight after the other, so that saving it needs no second copy."""
    for parameter in _others(model, dtype):
        parameter.data = parameter.data.to(dtype)


def _others(model: nn.Module, dtype: torch.dtype) -> Iterator[nn.Parameter]:
    """Yield the parameters in another precision, each at hand until the next one."""
    for module in model.modules():
        others = [parameter for parameter in module.parameters(recurse=False) if parameter.dtype != dtype]
        if others:
            with at_hand(module, write=True, deep=False):
                yield from others
