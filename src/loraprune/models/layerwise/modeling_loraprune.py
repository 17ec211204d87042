"""Modelling code of a model that loraprune pruned: the stock class of transformers with the widths that its weights have.

A copy of this file is beside the weights, so that `from_pretrained(folder, trust_remote_code=True)` works without loraprune.
It needs only torch and transformers (5.0 or newer). For every stock class `X` of transformers there is a `LayerwiseX` here.
The stock part of config.json describes the dense model; its `loraprune` entry records what is smaller:

    shapes       dotted path of a parameter or buffer -> shape
    attributes   dotted path of an integer that a module reads -> value
    head         path of a linear layer of the model's head -> columns, where the head reads what is smaller

Paths start below the model without its head, so that one record serves every head.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

PREFIX = "Layerwise"
TYPE_PREFIX = "loraprune_"
"""before the stock model type: transformers without this file stops at the unknown type instead of loading wrong shapes"""
FORMAT = 2
AUTO_CLASSES = {
    "AutoModel": "MODEL_MAPPING",
    "AutoModelForCausalLM": "MODEL_FOR_CAUSAL_LM_MAPPING",
    "AutoModelForMaskedLM": "MODEL_FOR_MASKED_LM_MAPPING",
    "AutoModelForSeq2SeqLM": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING",
    "AutoModelForSequenceClassification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING",
    "AutoModelForTokenClassification": "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING",
    "AutoModelForQuestionAnswering": "MODEL_FOR_QUESTION_ANSWERING_MAPPING",
    "AutoModelForImageClassification": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING",
}
"""name of an auto class -> name of its table, configuration class -> model class, both in transformers"""


class LayerConfig:
    """One layer's view of the model's configuration: separate integers, everything else as it is there now."""

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
        ValueError: for a malformed record, or one of another model.
    """
    try:
        if record["format"] != FORMAT:
            raise ValueError(
                f"format {record['format']!r} is not {FORMAT}: use the loraprune that wrote it, or the code beside it"
            )
        for path, shape in record["shapes"].items():
            owner, _, name = path.rpartition(".")
            _resize(_module(model, owner), name, tuple(shape))
        for path, value in record["attributes"].items():
            _set_attribute(model, path, value)
        for path, columns in record.get("head", {}).items() if model.base_model is not model else ():
            layer: Any = model.get_submodule(path)
            _resize(layer, "weight", (len(layer.weight), columns))
            layer.in_features = columns
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        text = f"{type(error).__name__}: {error}"
        raise ValueError(f"the `loraprune` entry of config.json does not describe this model ({text})") from None


def _module(model: PreTrainedModel, path: str) -> Any:
    """Return the module at a path below the model without its head."""
    try:
        return model.base_model.get_submodule(path)
    except AttributeError:
        raise ValueError(f"no module {path!r}") from None


def _resize(module: Any, name: str, shape: tuple[int, ...]) -> None:
    old: torch.Tensor = getattr(module, name)
    fits = len(shape) == old.ndim and all(0 < new <= present for new, present in zip(shape, old.shape, strict=True))
    if not fits:
        raise ValueError(f"{list(shape)} does not fit into {list(old.shape)} of {type(module).__name__}.{name}")
    new = old.new_empty(shape)
    is_parameter = isinstance(old, nn.Parameter)
    setattr(module, name, nn.Parameter(new, requires_grad=old.requires_grad) if is_parameter else new)
    if isinstance(module, nn.LayerNorm):
        module.normalized_shape = shape
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
        raise TypeError(f"{path} = {value!r} is not an integer")
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
        auto = next((auto for auto, each in stock_models(stock.config_class).items() if each is stock), None)
        values |= {"config_class": layerwise_class(stock.config_class), "_auto_class": auto}
        return type(name, (Resized, stock), values)
    raise AttributeError(f"{stock.__name__} is not a configuration or model of transformers")


def stock_models(config: type) -> Mapping[str, Any]:
    """Return the stock model class of a stock configuration class for every auto class that has one."""
    found = {auto: getattr(transformers, table).get(config, None) for auto, table in AUTO_CLASSES.items()}
    # A table may have several classes for one configuration: the first is the plain one.
    first = {auto: model[0] if isinstance(model, tuple) else model for auto, model in found.items()}
    return {auto: model for auto, model in first.items() if isinstance(model, type)}


def auto_map(config: type) -> Mapping[str, str]:
    """Return the entry of config.json that leads transformers to the classes in this file, from a stock configuration class."""
    classes = {"AutoConfig": config, **stock_models(config)}
    return {auto: f"{__name__.rpartition('.')[2]}.{PREFIX}{stock.__name__}" for auto, stock in classes.items()}


def __getattr__(name: str) -> type[Any]:
    """Make the class that config.json names, so that this file is the same for every kind of model."""
    stock = getattr(transformers, name.removeprefix(PREFIX), None)
    if not name.startswith(PREFIX) or not isinstance(stock, type):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return layerwise_class(stock)
