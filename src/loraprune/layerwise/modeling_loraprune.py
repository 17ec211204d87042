"""Modelling code of a model that loraprune pruned: the stock class of transformers with the widths that its weights have.

A copy of this file lies beside the weights, so that `from_pretrained(folder, trust_remote_code=True)` works without loraprune.
It needs torch and transformers (5.0 or newer) alone. For every stock class `X` of transformers there is a `LayerwiseX` here.
The stock part of config.json describes the dense model; its `loraprune` entry records what is smaller:

    linears      module path -> [rows, columns]
    norms        module path -> channels
    attributes   dotted path of an integer that a module reads -> value
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from torch import nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel

PREFIX = "Layerwise"
TYPE_PREFIX = "loraprune_"
"""before the stock model type: transformers without this file stops at the unknown type instead of loading wrong shapes"""
FORMAT = 1


class LayerConfig:
    """One layer's view of the model's configuration: integers of its own, everything else as it is there now."""

    def __init__(self, shared: PreTrainedConfig) -> None:
        self._shared = shared

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_shared":  # asked for while copying, before there is anything to look at
            raise AttributeError(name)
        return getattr(self._shared, name)


class Resized:
    """Gives a stock model its recorded widths once it is built and before its weights are loaded or initialised."""

    def post_init(self) -> None:
        """Resize, then do what every model of transformers does at the end of its construction."""
        assert isinstance(self, PreTrainedModel)
        resize_(self, getattr(self.config, "loraprune", None))
        super().post_init()  # type: ignore[misc]


def resize_(model: PreTrainedModel, record: Any) -> None:
    """Give the modules of a dense `model` the sizes of a record; their weights are empty afterwards.

    Raises:
        ValueError: for a record that is none, or that is of another model.
    """
    try:
        if record["format"] != FORMAT:
            raise ValueError(f"format {record['format']!r} is not {FORMAT}: update loraprune or the modelling file")
        for path, (rows, columns) in record["linears"].items():
            layer = _module(model, path)
            _resize(layer, "weight", (rows, columns))
            if getattr(layer, "bias", None) is not None:
                _resize(layer, "bias", (rows,))
            layer.out_features, layer.in_features = rows, columns
        for path, channels in record["norms"].items():
            _resize(_module(model, path), "weight", (channels,))
        for path, value in record["attributes"].items():
            _set_attribute(model, path, value)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        text = f"{type(error).__name__}: {error}"
        raise ValueError(f"the `loraprune` entry of config.json does not describe this model ({text})") from None


def _module(model: PreTrainedModel, path: str) -> Any:
    """Return the module at a path of the model with a head, also in the model without one."""
    if model.base_model is model:
        path = path.removeprefix(f"{model.base_model_prefix}.")
    try:
        return model.get_submodule(path)
    except AttributeError:
        raise ValueError(f"no module {path!r}") from None


def _resize(module: Any, name: str, shape: tuple[int, ...]) -> None:
    old: torch.Tensor = getattr(module, name)
    fits = len(shape) == old.ndim and all(0 < new <= present for new, present in zip(shape, old.shape, strict=True))
    if not fits:
        raise ValueError(f"{list(shape)} does not fit into {list(old.shape)} of {type(module).__name__}.{name}")
    setattr(module, name, nn.Parameter(old.new_empty(shape), requires_grad=old.requires_grad))
    module._is_hf_initialized = False  # a part of the model may have been initialised already


def _set_attribute(model: PreTrainedModel, path: str, value: int) -> None:
    owner, _, name = path.rpartition(".")
    in_config = owner.endswith(".config")
    holder = _module(model, owner.removesuffix(".config"))
    if in_config:
        if not isinstance(holder.config, LayerConfig):
            holder.config = LayerConfig(holder.config)
        holder = holder.config
    if not isinstance(value, int) or not isinstance(getattr(holder, name), int):
        raise TypeError(f"{path} = {value!r} is no integer")
    setattr(holder, name, value)


@functools.cache
def layerwise_class(stock: Any) -> type[Any]:
    """Return the subclass of a stock configuration or model class that knows a record, always the same one."""
    name = f"{PREFIX}{stock.__name__}"
    values: dict[str, Any] = {"__module__": __name__, "__qualname__": name, "__doc__": f"{stock.__name__}, resized."}
    if issubclass(stock, PreTrainedConfig):
        return type(
            name, (stock,), values | {"model_type": TYPE_PREFIX + stock.model_type, "_auto_class": "AutoConfig"}
        )
    if issubclass(stock, PreTrainedModel):
        auto = "AutoModelForCausalLM" if issubclass(stock, GenerationMixin) else "AutoModel"
        values |= {"config_class": layerwise_class(stock.config_class), "_auto_class": auto}
        return type(name, (Resized, stock), values)
    raise AttributeError(f"{stock.__name__} is no configuration or model of transformers")


def auto_map(config: type, *models: type) -> Mapping[str, str]:
    """Return the entry of config.json that leads transformers to the classes in this file."""
    classes = [layerwise_class(stock) for stock in (config, *models)]
    return {each._auto_class: f"{__name__.rpartition('.')[2]}.{each.__name__}" for each in classes}


def __getattr__(name: str) -> type[Any]:
    """Make the class that config.json names, so that this file is the same for every kind of model."""
    stock = getattr(transformers, name.removeprefix(PREFIX), None)
    if not name.startswith(PREFIX) or not isinstance(stock, type):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return layerwise_class(stock)
