"""Models with quantised layers: load them, prepare them for pruning, dequantise them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel, TorchAoConfig
from transformers.pytorch_utils import Conv1D

from loraprune.errors import ConfigError
from loraprune.models.foreign_state import compute_as_in_training, drop_saved_input, forget_quantiser
from loraprune.models.quantised.forms import NF4_BLOCK, Nf4Blocks, weight_rows
from loraprune.models.quantised.layers import Layer, dense_layer, kind_of, library, parts, stored, write_


@dataclass(frozen=True, slots=True)
class Quantisation:
    """How to load a model: which linear layers are quantised, and how."""

    kind: str
    """8bit (LLM.int8), 4bit (nf4 with scales quantised too) or int8 (torchao's, weights only)"""
    paths: frozenset[str]


def loading_options(
    chosen: Quantisation, shell: nn.Module, *, dtype: torch.dtype, device: torch.device
) -> dict[str, Any]:
    """Return what `from_pretrained` needs to quantise a model like `shell`, which has no weights, as it loads."""
    kind, linear = chosen.kind, nn.Linear | Conv1D
    dense = [path for path, each in shell.named_modules() if isinstance(each, linear) and path not in chosen.paths]
    quantisers: dict[str, Any] = {
        "8bit": lambda: BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=dense),
        "4bit": lambda: BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=dense,
        ),
        "int8": lambda: TorchAoConfig(
            library("torchao.quantization").Int8WeightOnlyConfig(), modules_to_not_convert=dense
        ),
    }  # fmt: skip
    library("torchao" if kind == "int8" else "bitsandbytes")
    return {"quantization_config": quantisers[kind](), "device_map": {"": device}}


def quantised_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the quantised layers of a model by their paths."""
    return {path: module for path, module in model.named_modules() if kind_of(module)}


def prepare_(model: nn.Module) -> None:
    """Make all quantised layers of a model fit to be pruned: on a CPU they compute with the weights they store, in any mode.

    Left alone, in evaluation bitsandbytes rounds activations to 8 bits on a CPU, and repacks 4-bit weights in place, after which LoRA
    gets gradients of zero. And 4-bit weights of 16, 48, 80 ... inputs, which blocks do not divide, it reads with wrong scales there
    (0.50.2): such rows are padded here, and so is what they are multiplied with. On any device 8-bit layers hold their inputs no longer.

    Raises:
        ConfigError: for weights that are already repacked, or quantised in another way than by `--quantize`.
    """
    for path, layer in quantised_layers(model).items():
        try:
            weight = stored(layer)
        except ConfigError as error:
            raise ConfigError(f"{path!r}: {error}") from None
        if isinstance(weight, Nf4Blocks):
            layer.register_forward_pre_hook(_pad)
            if weight.width % NF4_BLOCK:
                write_(layer, weight.rows(0, weight.shape[0]))
        if kind_of(layer) != "int8":
            layer.register_forward_pre_hook(compute_as_in_training)
        if kind_of(layer) == "8bit":
            layer.register_forward_hook(drop_saved_input)


def _pad(layer: Layer, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (nn.functional.pad(args[0], (0, layer.weight.quant_state.shape[1] - layer.in_features)), *args[1:])


def stored_parameters(model: nn.Module) -> Iterator[tuple[str, Shaped[Tensor, "..."]]]:
    """Yield the parameters of a model, and for quantised ones their codes and scales."""
    layers = {f"{path}.weight".lstrip("."): layer for path, layer in quantised_layers(model).items()}
    for name, parameter in model.named_parameters():
        weight = stored(layers[name]) if name in layers else parameter
        yield from ((f"{name}.{part}".rstrip("."), tensor) for part, tensor in parts(weight).items())


def dequantise_(model: PreTrainedModel) -> None:
    """Replace every quantised layer of a model by a dequantised one, in the dtype of the rest of the model."""
    for path, layer in quantised_layers(model).items():
        weight = stored(layer)
        model.set_submodule(path, dense_layer(layer, weight_rows(weight, 0, weight.shape[0]).to(model.dtype)))
    forget_quantiser(model)
