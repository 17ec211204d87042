"""LoRA on the projections of groups: attaching it, and reading and changing what it is attached to."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.optimizers import create_loraplus_optimizer
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from loraprune.errors import ConfigError
from loraprune.groups import Group
from loraprune.models.adapters.cuts import ADAPTER
from loraprune.models.adapters.kinds import PEFT_OPTIONS, check_kind
from loraprune.models.adapters.modules import base_layer, base_model, find_module, is_transposed, kernel_size
from loraprune.models.quantised import dense_layer, kind_of, stored, write_, zero_
from loraprune.models.quantised.forms import Weight, weight_rows
from loraprune.runtime.sharding import gather_tensor

KEPT_WEIGHTS = "kept_weights"
"""name of the buffer of a base layer that marks the non-zero weights of the merged projection, if some are zero"""
COUNTED = "counted_columns"
"""name of the buffer beside DoRA's magnitudes that marks the input channels in its norms, if some are masked"""


@dataclass(frozen=True, slots=True)
class Projection:
    """One adapted layer as criteria see it, W = W0 + scaling * B A (out x in); with DoRA, W = c (W0 + scaling * B A).

    A convolution is the matrix that multiplies its patches: `kernel` columns for every input channel.
    """

    path: str
    layer: nn.Module
    lora_a: nn.Parameter
    lora_b: nn.Parameter
    scaling: float
    kernel: int = 1
    """columns that belong to one input channel"""
    magnitude: nn.Parameter | None = None
    """DoRA's m, of which c is m over the norms of the rows; None with plain LoRA"""
    counted: Bool[Tensor, " channels"] | None = None
    """input channels that count in these norms; None for all"""

    @property
    def shape(self) -> tuple[int, int]:
        """Return (out, in)."""
        return self.lora_b.shape[0], self.lora_a.shape[1] * self.kernel

    @property
    def factors(self) -> tuple[Float[Tensor, "rank in_"], Float[Tensor, "out rank"]]:
        """Return A and B as matrices."""
        return self.lora_a.detach().flatten(1), self.lora_b.detach().flatten(1)

    def by_channel(self, columns: Float[Tensor, "*n in_"]) -> Float[Tensor, "*n channels"]:
        """Sum what belongs to the same input channel."""
        return columns.unflatten(-1, (-1, self.kernel)).sum(-1) if self.kernel > 1 else columns

    def stored(self) -> Weight:
        """Return the frozen weight as a matrix in its own dtype, or as the codes and scales of a quantised one."""
        weight = stored(self.layer)
        if not isinstance(weight, Tensor):
            return weight
        return weight.T if is_transposed(self.layer) else weight.flatten(1)

    def base_rows(self, start: int, stop: int) -> Float[Tensor, "rows in_"]:
        """Return rows of the frozen weight, in its own dtype; of a quantised one, in float32."""
        return weight_rows(self.stored(), start, stop)

    @torch.no_grad()
    def add_columns_(self, columns: Bool[Tensor, " in_"], change: Float[Tensor, "out chosen"]) -> None:
        """Add to some columns of W what the frozen weight takes up, which is quantised again if it was; DoRA's c must be kept."""
        if self.magnitude is not None:
            change = change / self.row_factors()[:, None]
        if kind_of(self.layer):
            weight = self.base_rows(0, self.shape[0])
            weight[:, columns] += change
            write_(self.layer, weight)
        else:
            base = self.stored()
            assert isinstance(base, Tensor)
            base[:, columns] += change.to(base.dtype)

    def merged_rows(self, start: int, stop: int) -> Float[Tensor, "rows in_"]:
        """Return rows of W in float32 or wider, a new tensor."""
        merged = self._sum_rows(start, stop)
        return merged if self.magnitude is None else merged.mul_(self.row_factors(start, stop)[:, None])

    def row_factors(self, start: int = 0, stop: int | None = None) -> Float[Tensor, " rows"]:
        """Return DoRA's c of some rows."""
        assert self.magnitude is not None
        norms = self.row_norms(start, stop)
        return self.magnitude.detach().flatten()[start:stop].to(norms) / norms

    def row_norms(self, start: int = 0, stop: int | None = None, *, every: bool = False) -> Float[Tensor, " rows"]:
        """Return the norms of some rows of W0 + scaling * B A over the columns that count, or over `every` one."""
        rows = self._sum_rows(start, self.shape[0] if stop is None else stop)
        if self.counted is not None and not every:
            rows = rows[:, self.counted.repeat_interleave(self.kernel)]
        return rows.norm(dim=1)

    def _sum_rows(self, start: int, stop: int) -> Float[Tensor, "rows in_"]:
        """Return rows of W0 + scaling * B A."""
        dtype = torch.promote_types(torch.float32, self.lora_a.dtype)
        a, b = self.factors
        base, a, b = (tensor.to(dtype) for tensor in (self.base_rows(start, stop), a, b[start:stop]))
        return torch.addmm(base, b, a, alpha=self.scaling)


def projection(model: nn.Module, path: str) -> Projection:
    """Return the adapted projection at a path of the base model.

    Raises:
        ConfigError: if it carries no LoRA, or a variant that pruning does not support.
    """
    return projection_of(find_module(model, path), path)


def projection_of(module: nn.Module, path: str) -> Projection:
    """Return the adapted projection that a module is; `path` names it in errors, which are those of `projection`."""
    if not isinstance(module, LoraLayer) or ADAPTER not in module.lora_A:
        raise ConfigError(f"no LoRA on {path!r}: attach it with loraprune.attach_lora(model, config)")
    variant = module.lora_variant.get(ADAPTER)
    if variant is not None and ADAPTER not in module.lora_magnitude_vector:
        name = getattr(variant, "__name__", type(variant).__name__)
        raise ConfigError(
            f"{path!r} has an adapter of PEFT's {name}, which is not cut exactly: use one of {', '.join(PEFT_OPTIONS)}"
        )
    if len(module.lora_magnitude_vector) > 1:
        raise ConfigError(
            f"{path!r} has two adapters with DoRA, of which only one would follow a removal: use plain LoRA for both"
        )
    weight = module.get_base_layer().weight
    if not (isinstance(weight, Tensor) and (weight.dtype.is_floating_point or kind_of(module.get_base_layer()))):
        raise ConfigError(
            f"{path!r} has a weight that is quantised in a way that cannot be cut: load the 16- or 32-bit base, or quantise it "
            "by bitsandbytes to 8 bits or nf4"
        )
    a, b = module.lora_A[ADAPTER].weight, module.lora_B[ADAPTER].weight
    assert isinstance(a, nn.Parameter)
    assert isinstance(b, nn.Parameter)
    layer = module.get_base_layer()
    magnitude: nn.Parameter | None = None
    counted: Tensor | None = None
    if ADAPTER in module.lora_magnitude_vector:
        holder = module.lora_magnitude_vector[ADAPTER]
        magnitude, counted = holder.get_parameter("weight"), holder._buffers.get(COUNTED)
    return Projection(path, layer, a, b, module.scaling[ADAPTER], kernel_size(layer), magnitude, counted)


def linear_paths(groups: Iterable[Group]) -> list[str]:
    """Return the paths of all projections that the groups' units own rows or columns of, each once, in order."""
    return list(dict.fromkeys(s.module for group in groups for s in group.spans if s.side in ("out", "in")))


def head_paths(model: PreTrainedModel, groups: Iterable[Group]) -> list[str]:
    """Return the paths of the layers that make up a head for classes, tags, spans or rewards, its pooler included.

    They are the layers beside the part with the groups. A head that writes tokens is not one of them: it comes with the backbone. A
    model that is one module has no such head.
    """
    if model.get_output_embeddings() is not None or model.base_model is model:
        return []
    inside = {span.module for group in groups for span in group.spans if span.side != "head"}
    heads = [
        (name, child) for name, child in model.named_children() if not any(_is_below(path, name) for path in inside)
    ]
    layers = model.base_model
    if isinstance(pooler := getattr(layers, "pooler", None), nn.Module):
        heads.append((f"{model.base_model_prefix}.pooler", pooler))
    paths = (f"{path}.{name}".rpartition(".")[0] for path, head in heads for name, _ in head.named_parameters())
    return list(dict.fromkeys(paths))


def _is_below(path: str, parent: str) -> bool:
    return path == parent or path.startswith(f"{parent}.")


def attach_lora(
    model: PreTrainedModel,
    groups: Iterable[Group],
    *,
    rank: int,
    alpha: float,
    dropout: float,
    seed: int,
    whole: Sequence[str] = (),
    kind: str = "lora",
) -> PeftModel:
    """Put LoRA on every projection of the groups; modules in `whole` are trained as they are, everything else is frozen.

    Raises:
        ConfigError: for layers on which this kind of adapter cannot be used.
    """
    names = linear_paths(groups)
    check_kind(kind, [(name, find_module(model, name)) for name in names])
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
        **PEFT_OPTIONS[kind],
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        adapted = get_peft_model(model, config)
    assert isinstance(adapted, PeftModel)
    return adapted


def carries_adapter(model: nn.Module) -> bool:
    """Return whether a model has an adapter of any kind that is not merged."""
    return any(isinstance(module, BaseTunerLayer) for module in model.modules())


def lora_weights(model: PeftModel) -> dict[str, Float[Tensor, "..."]]:
    """Return the adapter's weights, gathered, under the names of an adapter_model.safetensors."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Adapter .* have invalid shape")  # factors of a layer that is gone are empty
        found: dict[str, Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: gather_tensor(value.detach()).cpu().clone().contiguous() for name, value in found.items()}


def trained_factors(model: nn.Module, *, without: Collection[str] = ()) -> dict[nn.Parameter, float]:
    """Return the factors A and B that training changes, and the scale, alpha over rank or its like, of the adapter of each.

    Those of the projections at the paths `without` are left out.
    """
    left_out = {find_module(model, path) for path in without}
    layers = [
        module
        for module in model.modules()
        if isinstance(module, LoraLayer) and ADAPTER in module.lora_A and module not in left_out
    ]
    return {
        weight: float(layer.scaling[ADAPTER])
        for layer in layers
        for factor in (layer.lora_A[ADAPTER], layer.lora_B[ADAPTER])
        if isinstance(weight := factor.weight, nn.Parameter) and weight.requires_grad
    }


def lora_plus_optimizer(
    model: Any, kind: type[torch.optim.Optimizer], options: Mapping[str, Any], *, ratio: float
) -> torch.optim.Optimizer:
    """Return an optimiser of a kind for an adapted model; `options` hold the learning rate `lr` of A, and B's is `ratio` times as high.

    Source: Hayou et al., LoRA+ (arXiv 2402.12354).
    """
    rest = {name: value for name, value in options.items() if name != "lr"}
    made: torch.optim.Optimizer = create_loraplus_optimizer(
        model, kind, lr=options["lr"], loraplus_lr_ratio=ratio, **rest
    )
    return made


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
    if kind_of(layer):
        zero_(layer, kept)
        return
    weight = layer.weight
    assert isinstance(weight, Tensor)
    (weight.data.T if is_transposed(layer) else weight.data).masked_fill_(~kept.to(weight.device), 0)


@contextmanager
def dense_for_a_while(model: nn.Module, paths: Iterable[str]) -> Iterator[None]:
    """Give quantised projections weights that can be trained; afterwards these are quantised."""
    swapped, base = {}, base_model(model)
    assert isinstance(base, PreTrainedModel)
    for path in paths:
        module = find_module(model, path)
        if isinstance(module, LoraLayer) and kind_of(module.get_base_layer()):
            proj = projection(model, path)
            swapped[path] = proj.layer
            module.base_layer = dense_layer(proj.layer, proj.base_rows(0, proj.shape[0]).to(base.dtype))
    try:
        yield
    finally:
        for path, layer in swapped.items():
            module = find_module(model, path)
            assert isinstance(module, LoraLayer)
            dense = projection(model, path)
            write_(layer, dense.base_rows(0, dense.shape[0]))
            module.base_layer = layer
