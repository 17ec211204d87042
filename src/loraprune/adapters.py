"""LoRA on the projections of groups: attaching, reading, merging. The only file that touches PEFT's internals.

Knows nothing about scores or plans.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from loraprune.errors import ConfigError, GroupMismatchError, UnsupportedModelError
from loraprune.groups import Group, Side

ADAPTER = "default"
KEPT_WEIGHTS = "kept_weights"
"""name of the buffer of a base layer that says which weights of the merged projection are not zero, where some are"""

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
    def tensor(self) -> Tensor:
        """Return the tensor (parameter or buffer) itself."""
        tensor = getattr(self.owner, self.name)
        assert isinstance(tensor, Tensor)
        return tensor


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
    """Say whether a layer stores its weight as (in, out), as GPT-2's Conv1D and embeddings do."""
    return isinstance(layer, Conv1D | nn.Embedding)


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
    if isinstance(module, LoraLayer) and ADAPTER in module.lora_A:
        factors = module.lora_A if side == "in" else module.lora_B
        yield Cut(factors[ADAPTER], "weight", 1 if side == "in" else 0)
        if side == "out" and getattr(factors[ADAPTER], "bias", None) is not None:
            yield Cut(factors[ADAPTER], "bias", 0)


def table_cuts(layer: nn.Module) -> Iterator[Cut]:
    """Yield what a layer itself keeps for every unit: kernels of a depthwise convolution, else all that ends in the units."""
    for name, tensor in (*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)):
        if tensor.is_floating_point():
            yield Cut(layer, name, 0 if isinstance(layer, nn.Conv2d) else tensor.ndim - 1)


def head_copies(module: nn.Module) -> list[nn.Module]:
    """Return the layer of a task's head; of one that is trained as it is, the frozen original and its trained copy."""
    if not isinstance(module, ModulesToSaveWrapper):
        return [module]
    return [module.original_module, module.modules_to_save[ADAPTER]]


def kernel_size(layer: nn.Module) -> int:
    """Return how many weights join one input to one output channel."""
    return math.prod(layer.kernel_size) if isinstance(layer, nn.Conv2d) else 1


def channels_last(module: nn.Module, tensor: Tensor) -> Float[Tensor, "batch *places channels"]:
    """Return what a layer reads or gives with its channels last, as linear layers have them."""
    return tensor.movedim(1, -1) if is_channels_first(module) else tensor


def channels_first(module: nn.Module, tensor: Float[Tensor, "batch *places channels"]) -> Tensor:
    """Return the inverse of `channels_last`."""
    return tensor.movedim(-1, 1) if is_channels_first(module) else tensor


def is_channels_first(module: nn.Module) -> bool:
    """Say whether a layer has its channels behind the batch: convolutions, and norms that say so."""
    layer = base_layer(module)
    return isinstance(layer, nn.Conv2d) or getattr(layer, "data_format", "") == "channels_first"


def read_columns(module: nn.Module, x: Tensor) -> Float[Tensor, "batch *places columns"]:
    """Return what a projection multiplies with its weight as a matrix: x itself, or for a convolution the patches of x."""
    layer = base_layer(module)
    if not isinstance(layer, nn.Conv2d):
        return x
    assert isinstance(layer.padding, tuple)
    patches = functional.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    return patches.transpose(1, 2)


def features(layer: nn.Module, side: Side) -> list[str]:
    """Return the names of the integers in which a layer keeps its size on a side."""
    return [name for name in FEATURES.get(side, ()) if name in vars(layer)]


def set_features(module: nn.Module, side: Side, size: int) -> None:
    """Make the integers that layers print and check agree with their cut tensors."""
    layer = base_layer(module)
    holders = head_copies(module) if side == "head" else [layer, module]
    if isinstance(module, LoraLayer) and ADAPTER in module.lora_A:
        holders.append((module.lora_A if side == "in" else module.lora_B)[ADAPTER])
    for holder in holders:
        for name in features(holder, side):
            setattr(holder, name, size)
    if isinstance(layer, nn.LayerNorm):
        layer.normalized_shape = (size,)


@dataclass(frozen=True, slots=True)
class Projection:
    """One adapted layer as criteria see it, W = W0 + scaling * B A (out x in).

    A convolution is the matrix that multiplies its patches: `kernel` columns for every input channel.
    """

    path: str
    layer: nn.Module
    lora_a: nn.Parameter
    lora_b: nn.Parameter
    scaling: float
    kernel: int = 1
    """columns that belong to one input channel"""

    @property
    def shape(self) -> tuple[int, int]:
        """Return (out, in)."""
        return self.lora_b.shape[0], self.lora_a.shape[1] * self.kernel

    @property
    def factors(self) -> tuple[Float[Tensor, "rank in_"], Float[Tensor, "out rank"]]:
        """Return A and B as matrices."""
        return self.lora_a.detach().flatten(1), self.lora_b.detach().flatten(1)

    def by_channel(self, columns: Float[Tensor, " in_"]) -> Float[Tensor, " channels"]:
        """Sum what belongs to the same input channel."""
        return columns.view(-1, self.kernel).sum(1) if self.kernel > 1 else columns

    def base_rows(self, start: int, stop: int) -> Float[Tensor, "rows in_"]:
        """Return rows of the frozen weight, in its own dtype."""
        weight = self.layer.weight
        assert isinstance(weight, Tensor)
        return weight.detach()[:, start:stop].T if is_transposed(self.layer) else weight.detach()[start:stop].flatten(1)

    def merged_rows(self, start: int, stop: int) -> Float[Tensor, "rows in_"]:
        """Return rows of W = W0 + scaling * B A in float32 or wider, a new tensor."""
        dtype = torch.promote_types(torch.float32, self.lora_a.dtype)
        a, b = self.factors
        base, a, b = (tensor.to(dtype) for tensor in (self.base_rows(start, stop), a, b[start:stop]))
        return torch.addmm(base, b, a, alpha=self.scaling)


def projection(model: nn.Module, path: str) -> Projection:
    """Return the adapted projection at a path of the base model.

    Raises:
        ConfigError: if it carries no LoRA, or a variant that pruning does not support.
    """
    module = find_module(model, path)
    if not isinstance(module, LoraLayer) or ADAPTER not in module.lora_A:
        raise ConfigError(f"no LoRA on {path!r}: attach it with loraprune.attach_lora(model, config)")
    if module.use_dora.get(ADAPTER):
        raise ConfigError(
            "use_dora=True: DoRA's weight norms change when columns of o_proj or down_proj go (masked and sliced model "
            "would differ); train with plain LoRA or rsLoRA"
        )
    weight = module.get_base_layer().weight
    if not (isinstance(weight, Tensor) and weight.dtype.is_floating_point):
        raise ConfigError(f"{path!r} has a quantised weight, which cannot be cut exactly: load the 16- or 32-bit base")
    a, b = module.lora_A[ADAPTER].weight, module.lora_B[ADAPTER].weight
    assert isinstance(a, nn.Parameter)
    assert isinstance(b, nn.Parameter)
    layer = module.get_base_layer()
    return Projection(path, layer, a, b, module.scaling[ADAPTER], kernel_size(layer))


def linear_paths(groups: Iterable[Group]) -> list[str]:
    """Return the paths of all projections that the groups' units own rows or columns of, each once, in order."""
    return list(dict.fromkeys(s.module for group in groups for s in group.spans if s.side in ("out", "in")))


def attach_lora(
    model: PreTrainedModel,
    groups: Iterable[Group],
    *,
    rank: int,
    alpha: float,
    dropout: float,
    seed: int,
    whole: Sequence[str] = (),
) -> PeftModel:
    """Put LoRA on every projection of the groups; modules in `whole` are trained as they are, everything else is frozen."""
    names = linear_paths(groups)
    transposed = any(is_transposed(base_layer(find_module(model, name))) for name in names)
    # PEFT declares lora_alpha as an int, and divides it by the rank all the same.
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        lora_dropout=dropout,
        target_modules=names,
        fan_in_fan_out=transposed,
        bias="none",
        modules_to_save=list(whole) or None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        adapted = get_peft_model(model, config)
    assert isinstance(adapted, PeftModel)
    return adapted


def lora_weights(model: PeftModel) -> dict[str, Tensor]:
    """Return the adapter's weights under the names of an adapter_model.safetensors."""
    found: dict[str, Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: value.detach().cpu().clone().contiguous() for name, value in found.items()}


def factors(module: nn.Module) -> tuple[nn.Linear, nn.Linear]:
    """Return the layers that hold A and B of an adapted projection."""
    assert isinstance(module, LoraLayer)
    a, b = module.lora_A[ADAPTER], module.lora_B[ADAPTER]
    assert isinstance(a, nn.Linear)
    assert isinstance(b, nn.Linear)
    return a, b


@torch.no_grad()
def zero_weights_(layer: nn.Module, kept: Bool[Tensor, "out in_"]) -> None:
    """Write zeros, not negative ones, into all weights of a layer but those in `kept`."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    (weight.data.T if is_transposed(layer) else weight.data).masked_fill_(~kept.to(weight.device), 0)


def merge_lora(model: PeftModel) -> PreTrainedModel:
    """Add every scaled B A to its base weight and return the plain model; `model` must not be used afterwards.

    Masked weights (see `loraprune.sparsity.masks`) are zero in the result, and their masks are gone.
    """
    merged = model.merge_and_unload(progressbar=False)
    assert isinstance(merged, PreTrainedModel)
    for layer in merged.modules():
        if KEPT_WEIGHTS in layer._buffers:
            zero_weights_(layer, layer.get_buffer(KEPT_WEIGHTS))
            delattr(layer, KEPT_WEIGHTS)
    return merged


def config_of(model: nn.Module) -> PreTrainedConfig:
    """Return the configuration of the base model.

    Raises:
        UnsupportedModelError: if it is no model of transformers' kind.
    """
    base = base_model(model)
    if not isinstance(base, PreTrainedModel):
        raise UnsupportedModelError(
            f"{type(base).__name__} is no PreTrainedModel of transformers, so no family describes it; "
            "docs/add-a-family.md shows in a dozen lines how to add one"
        )
    config = base.config
    assert isinstance(config, PreTrainedConfig)
    return config
