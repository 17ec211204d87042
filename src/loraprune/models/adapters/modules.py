"""Find the modules of a model, adapted or not, and read their inputs and outputs."""

from __future__ import annotations

import inspect
import math

from jaxtyping import Float
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from loraprune.errors import GroupMismatchError, UnsupportedModelError


def base_model(model: nn.Module) -> nn.Module:
    """Return the model that PEFT wraps, or the model itself."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def backbone(model: nn.Module) -> nn.Module:
    """Return the layers of a model without its head."""
    layers = base_model(model).base_model
    assert isinstance(layers, nn.Module)
    return layers


def no_cache(model: nn.Module) -> dict[str, bool]:
    """Return the argument that keeps the forward of a model from collecting keys and values, where it has one."""
    return {"use_cache": False} if "use_cache" in inspect.signature(base_model(model).forward).parameters else {}


def find_module(model: nn.Module, path: str) -> nn.Module:
    """Return the module at a dotted path of the base model.

    Raises:
        GroupMismatchError: if there is none.
    """
    try:
        return base_model(model).get_submodule(path)
    except AttributeError:
        raise GroupMismatchError(f"the model has no module {path!r}: its family describes another layout") from None


def base_layer(module: nn.Module) -> nn.Module:
    """Return the layer below an adapter, or the layer itself."""
    return module.get_base_layer() if isinstance(module, LoraLayer) else module


def is_transposed(layer: nn.Module) -> bool:
    """Return whether a layer stores its weight as (in, out), as GPT-2's Conv1D and embeddings do."""
    return isinstance(layer, Conv1D | nn.Embedding)


def kernel_size(layer: nn.Module) -> int:
    """Return how many weights join one input to one output channel."""
    return math.prod(layer.kernel_size) if isinstance(layer, nn.Conv2d) else 1


def channels_last(module: nn.Module, tensor: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch *places channels"]:
    """Return a layer's input or output with its channels last, as in linear layers."""
    return tensor.movedim(1, -1) if is_channels_first(module) else tensor


def channels_first(module: nn.Module, tensor: Float[Tensor, "batch *places channels"]) -> Float[Tensor, "batch ..."]:
    """Return the inverse of `channels_last`."""
    return tensor.movedim(-1, 1) if is_channels_first(module) else tensor


def is_channels_first(module: nn.Module) -> bool:
    """Return whether a layer has its channels behind the batch: convolutions, and norms that say so."""
    layer = base_layer(module)
    return isinstance(layer, nn.Conv2d) or getattr(layer, "data_format", "") == "channels_first"


def read_columns(module: nn.Module, x: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch *places columns"]:
    """Return the factor of a projection's weight matrix: x itself, or for a convolution the patches of x."""
    layer = base_layer(module)
    if not isinstance(layer, nn.Conv2d):
        return x
    assert isinstance(layer.padding, tuple)
    patches = functional.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    return patches.transpose(1, 2)


def config_of(model: nn.Module) -> PreTrainedConfig:
    """Return the configuration of the base model.

    Raises:
        UnsupportedModelError: if it is not a transformers model.
    """
    base = base_model(model)
    if not isinstance(base, PreTrainedModel):
        raise UnsupportedModelError(
            f"{type(base).__name__} is not a PreTrainedModel of transformers, so no family describes it; "
            "docs/add-a-family.md shows in a dozen lines how to add one"
        )
    config = base.config
    assert isinstance(config, PreTrainedConfig)
    return config
