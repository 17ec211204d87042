"""LoRA on the projections of groups: attaching, reading, merging. The only file that touches PEFT's internals.

Knows nothing about scores or plans.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from loraprune.errors import ConfigError, GroupMismatchError
from loraprune.groups import Group, Side

ADAPTER = "default"
KEPT_WEIGHTS = "kept_weights"
"""name of the buffer of a base layer that says which weights of the merged projection are not zero, where some are"""


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
    """Say whether a layer stores its weight as (in, out), as GPT-2's Conv1D does."""
    return isinstance(layer, Conv1D)


def cuts(module: nn.Module, side: Side) -> Iterator[Cut]:
    """Yield every tensor that loses entries when units of a span on `side` of `module` go."""
    layer = base_layer(module)
    out_dim = 1 if is_transposed(layer) else 0
    yield Cut(layer, "weight", 1 - out_dim if side == "in" else out_dim)
    if side != "in" and getattr(layer, "bias", None) is not None:
        yield Cut(layer, "bias", 0)
    if isinstance(module, LoraLayer) and ADAPTER in module.lora_A:
        factors = module.lora_A if side == "in" else module.lora_B
        yield Cut(factors[ADAPTER], "weight", 1 if side == "in" else 0)
        if side == "out" and getattr(factors[ADAPTER], "bias", None) is not None:
            yield Cut(factors[ADAPTER], "bias", 0)


def set_features(module: nn.Module, side: Side, size: int) -> None:
    """Make the integers that linear layers print and check agree with their cut tensors."""
    layer = base_layer(module)
    holders = [layer, module]
    if isinstance(module, LoraLayer) and ADAPTER in module.lora_A:
        holders.append((module.lora_A if side == "in" else module.lora_B)[ADAPTER])
    names = ("in_features", "nx") if side == "in" else ("out_features", "nf")
    for holder in holders:
        for name in names:
            if name in vars(holder):
                setattr(holder, name, size)


@dataclass(frozen=True, slots=True)
class Projection:
    """One adapted linear layer as criteria see it, W = W0 + scaling * B A (out x in)."""

    path: str
    layer: nn.Module
    lora_a: nn.Parameter
    lora_b: nn.Parameter
    scaling: float

    @property
    def shape(self) -> tuple[int, int]:
        """Return (out, in)."""
        return self.lora_b.shape[0], self.lora_a.shape[1]

    def base_rows(self, start: int, stop: int) -> Float[Tensor, "rows in_"]:
        """Return rows of the frozen weight, in its own dtype."""
        weight = self.layer.weight
        assert isinstance(weight, Tensor)
        return weight.detach()[:, start:stop].T if is_transposed(self.layer) else weight.detach()[start:stop]

    def merged_rows(self, start: int, stop: int) -> Float[Tensor, "rows in_"]:
        """Return rows of W = W0 + scaling * B A in float32 or wider, a new tensor."""
        dtype = torch.promote_types(torch.float32, self.lora_a.dtype)
        base, a, b = (t.detach().to(dtype) for t in (self.base_rows(start, stop), self.lora_a, self.lora_b[start:stop]))
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
    return Projection(path, module.get_base_layer(), a, b, module.scaling[ADAPTER])


def linear_paths(groups: Iterable[Group]) -> list[str]:
    """Return the paths of all projections that the groups' units own rows or columns of, each once, in order."""
    return list(dict.fromkeys(s.module for group in groups for s in group.spans if s.side != "norm"))


def attach_lora(
    model: PreTrainedModel, groups: Iterable[Group], *, rank: int, alpha: float, dropout: float, seed: int
) -> PeftModel:
    """Put LoRA on every projection of the groups; everything else is frozen."""
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
    """Return the configuration of the base model."""
    config = base_model(model).config
    assert isinstance(config, PreTrainedConfig)
    return config
