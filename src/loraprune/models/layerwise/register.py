"""Register the layer-wise model types with transformers, and map them back to the stock ones.

Knows nothing about groups or weights.
"""

from __future__ import annotations

from typing import Any

import transformers
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from loraprune.errors import UnsupportedModelError, nearest
from loraprune.models.layerwise.modeling_loraprune import PREFIX, TYPE_PREFIX, layerwise_class, stock_models


def register_type(model_type: str) -> None:
    """Register a layer-wise model type, so that it loads without the code in its folder; other types are unchanged.

    Raises:
        UnsupportedModelError: if this transformers has no model of the underlying stock type.
    """
    if not model_type.startswith(TYPE_PREFIX):
        return
    config = stock_config_class(model_type.removeprefix(TYPE_PREFIX))
    own = layerwise_class(config)
    AutoConfig.register(model_type, own, exist_ok=True)
    for auto, stock in stock_models(config).items():
        getattr(transformers, auto).register(own, layerwise_class(stock), exist_ok=True)


def stock_config_class(model_type: str) -> Any:
    """Return the configuration class of a stock model type.

    Raises:
        UnsupportedModelError: if this transformers has no model of that type.
    """
    if model_type not in CONFIG_MAPPING or not stock_models(CONFIG_MAPPING[model_type]):
        raise UnsupportedModelError(
            f"transformers has no model of type {model_type!r}{nearest(model_type, CONFIG_MAPPING)}: "
            "layer-wise models need a stock one, in a transformers that knows it"
        )
    return CONFIG_MAPPING[model_type]


def stock_of(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return the stock configuration of the dense model behind a layer-wise one; a stock one is its own."""
    if not config.model_type.startswith(TYPE_PREFIX):
        return config
    values = config.to_dict()
    for name in ("loraprune", "auto_map"):
        values.pop(name, None)
    values["architectures"] = [name.removeprefix(PREFIX) for name in config.architectures or ()] or None
    values["model_type"] = config.model_type.removeprefix(TYPE_PREFIX)
    stock: PreTrainedConfig = CONFIG_MAPPING[values["model_type"]].from_dict(values)
    return stock
