"""Find the tensors of a layer and of its adapter that a span cuts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn

from loraprune.groups import Side
from loraprune.models.adapters.modules import base_layer, is_transposed
from loraprune.models.quantised import cut_, kind_of, size, stored
from loraprune.models.quantised.forms import weight_rows

ADAPTER = "default"
ADDED = frozenset({"lora_A", "lora_B", "lora_magnitude_vector", "modules_to_save", "token_adapter"})
"""parts of the names of parameters that PEFT adds"""

FEATURES: Mapping[Side, tuple[str, ...]] = {
    "in": ("in_features", "nx", "in_channels"),
    "out": ("out_features", "nf", "out_channels"),
    "table": ("embedding_dim", "num_features", "in_channels", "out_channels", "groups"),
    "head": ("in_features",),
    "router": ("num_experts",),
    "stack": ("num_experts",),
    "expert_in": ("intermediate_dim",),
}
"""integers in which layers keep a size of their weights"""
STACKS: Mapping[Side, tuple[tuple[str, int], ...]] = {
    "stack": (("gate_up_proj", 0), ("down_proj", 0)),
    "expert_out": (("gate_up_proj", 1),),
    "expert_in": (("down_proj", 2),),
}
"""side -> parameters (experts, rows, columns) that hold the experts of a layer, and the dimension that is cut"""


@dataclass(frozen=True, slots=True)
class Cut:
    """One tensor that a span's side runs through: `owner.name`, along dimension `dim`."""

    owner: nn.Module
    name: str
    dim: int

    @property
    def tensor(self) -> Shaped[Tensor, "..."]:
        """Return the tensor (parameter or buffer) itself."""
        tensor = getattr(self.owner, self.name)
        assert isinstance(tensor, Tensor)
        return tensor

    @property
    def is_quantised(self) -> bool:
        """Return whether the tensor is the quantised weight of its layer."""
        return self.name == "weight" and kind_of(self.owner) is not None

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of the numbers, which a quantised weight may store in another."""
        return size(self.owner) if self.is_quantised else tuple(self.tensor.shape)

    @property
    def size(self) -> int:
        """Return the entries along the dimension that is cut."""
        return self.shape[self.dim]

    def values(self) -> Float[Tensor, "..."]:
        """Return the values of the tensor, dequantised if needed."""
        if self.is_quantised:
            return weight_rows(stored(self.owner), 0, self.shape[0])
        return self.tensor.detach()

    def keep_(self, index: Int[Tensor, " left"]) -> None:
        """Keep some entries along the dimension; a parameter stays the same object, unless it is quantised."""
        if self.is_quantised:
            cut_(self.owner, self.dim, index)
        else:
            tensor = self.tensor
            left = tensor.data.index_select(self.dim, index).contiguous()
            if tensor.requires_grad:
                forget_shape(tensor)
            tensor.data = left


def forget_shape(parameter: Shaped[Tensor, "..."]) -> None:
    """Take the values from a parameter, so that autograd forgets its shape; give it new ones afterwards.

    The node that adds up its gradient lives as long as a graph that something holds, as reference cycles of custom kernels do, and
    checks gradients against the shape it was made with. It is made again after a change of type, which `Tensor.data` documents, but not
    after one of shape alone: https://github.com/pytorch/pytorch/blob/v2.13.0/torch/csrc/autograd/variable.cpp (`set_data`).
    """
    other = torch.float32 if parameter.dtype == torch.float64 else torch.float64
    parameter.data = torch.empty(0, dtype=other, device=parameter.device)


def cuts(module: nn.Module, side: Side) -> Iterator[Cut]:
    """Yield every tensor that loses entries when units of a span on `side` of `module` go."""
    layer = base_layer(module)
    if side == "table":
        yield from table_cuts(layer)
        return
    if side == "head":
        yield from (Cut(copy, "weight", 1) for copy in head_copies(module))
        return
    if side in STACKS:
        yield from (Cut(layer, name, dim) for name, dim in STACKS[side])
        return
    out_dim = 1 if is_transposed(layer) else 0
    yield Cut(layer, "weight", 1 - out_dim if side == "in" else out_dim)
    if side != "in" and getattr(layer, "bias", None) is not None:
        yield Cut(layer, "bias", 0)
    for factor in _factors(module, side):
        yield Cut(factor, "weight", 1 if side == "in" else 0)
        if side == "out" and getattr(factor, "bias", None) is not None:
            yield Cut(factor, "bias", 0)
    if side == "out" and isinstance(module, LoraLayer):
        for magnitudes in module.lora_magnitude_vector.values():  # of DoRA; a convolution's are shaped (1, out, 1, 1)
            yield Cut(magnitudes, "weight", 0 if magnitudes.weight.ndim == 1 else 1)


def _factors(module: nn.Module, side: Side) -> list[nn.Module]:
    """Return A (for `in`) or B of every adapter of a projection: trainers of preferences keep a second one to compare with."""
    if not isinstance(module, LoraLayer):
        return []
    return list((module.lora_A if side == "in" else module.lora_B).values())


def count_parameters(model: nn.Module) -> int:
    """Return the number of weights of a model, quantised or not, without its adapter's."""
    places = (name.rpartition(".") for name, _ in model.named_parameters() if ADDED.isdisjoint(name.split(".")))
    return sum(math.prod(Cut(model.get_submodule(path), name, 0).shape) for path, _, name in places)


def table_cuts(layer: nn.Module) -> Iterator[Cut]:
    """Yield what a layer itself keeps for every unit: kernels of a depthwise convolution, else all that ends in the units."""
    for name, tensor in (*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)):
        if tensor.is_floating_point():
            yield Cut(layer, name, 0 if isinstance(layer, nn.Conv2d) else tensor.ndim - 1)


def head_copies(module: nn.Module) -> list[nn.Module]:
    """Return the layer of a task's head; of one that is trained as it is, the frozen original and its trained copy."""
    if not isinstance(module, ModulesToSaveWrapper):
        return [module]
    return [module.original_module, *module.modules_to_save.values()]


def features(layer: nn.Module, side: Side) -> list[str]:
    """Return the names of the integers in which a layer keeps its size on a side."""
    return [name for name in FEATURES.get(side, ()) if name in vars(layer)]


def set_features(module: nn.Module, side: Side, size: int) -> None:
    """Make the integers that layers print and check agree with their cut tensors."""
    layer = base_layer(module)
    holders = head_copies(module) if side == "head" else [layer, module, *_factors(module, side)]
    for holder in holders:
        for name in features(holder, side):
            setattr(holder, name, size)
    if isinstance(layer, nn.LayerNorm):
        layer.normalized_shape = (size,)
