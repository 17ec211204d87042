"""Every save verifies itself: the masked dense model, the sliced model and the model loaded from disk must agree.

Knows nothing about how the model came about.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from loraprune.adapters import base_layer, cuts, find_module
from loraprune.errors import GroupMismatchError, NumericsError, VerificationError
from loraprune.groups import Group, Span, kept_entries, sides
from loraprune.masking import Masks
from loraprune.plan import Plan
from loraprune.surgery import rescale_norm_

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 6e-2, torch.float16: 1e-2}
"""largest difference of two logits, relative to the largest logit: summation order in float32, rounding in 16 bits"""
PROBE_ROWS, PROBE_TOKENS = 2, 48


@dataclass(frozen=True, slots=True)
class Verification:
    """Largest differences of logits, relative to the largest logit."""

    masked_vs_sliced: float
    sliced_vs_reloaded: float
    tolerance: float
    saved_as: str
    """model type of the reloaded model"""


def probe_batch(vocabulary: int, *, seed: int = 0) -> Int[Tensor, "rows tokens"]:
    """Return token ids to compare logits on, drawn evenly from the vocabulary."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocabulary, (PROBE_ROWS, PROBE_TOKENS), generator=generator)


@torch.inference_mode()
def logits_of(model: nn.Module, tokens: Int[Tensor, "rows tokens"]) -> Float[Tensor, "rows tokens vocabulary"]:
    """Return a model's logits on the CPU in float32; the model ends in evaluation mode."""
    model.eval()
    logits: Tensor = model(input_ids=tokens.to(next(model.parameters()).device), use_cache=False).logits
    return logits.float().cpu()


def difference(one: Tensor, other: Tensor) -> float:
    """Return the largest difference of two tensors relative to the largest value of the first."""
    return ((one - other).abs().max() / one.abs().max().clamp_min(1e-12)).item()


def check_difference(what: str, value: float, dtype: torch.dtype) -> float:
    """Return `value`, or raise a VerificationError if it exceeds the tolerance of the dtype."""
    if math.isnan(value):
        raise NumericsError(
            f"{what}: after the last step logits are NaN or infinite; nothing was saved: lower --lr, or use --dtype float32"
        )
    tolerance = TOLERANCE[dtype]
    if not value <= tolerance:
        raise VerificationError(
            f"{what}: logits differ by {value:.2e} of the largest, {tolerance:.0e} is allowed; nothing was saved. "
            "Please report this with the command and the output of `loraprune inspect`"
        )
    return value


@torch.no_grad()
def fill_dense_(dense: PreTrainedModel, sliced: Mapping[str, Tensor], groups: Sequence[Group], plan: Plan) -> None:
    """Write the kept weights of a sliced model into their places in the dense one; dropped units stay as they were.

    `sliced` maps names of tensors to the sliced model's tensors. Modifies `dense`.
    """
    sliced = dict(sliced)
    entries: dict[tuple[str, int], list[int]] = {}
    for group in groups:
        for (path, side), spans in sides(group).items():
            for cut in cuts(find_module(dense, path), side):
                size = cut.tensor.shape[cut.dim]
                entries[f"{path}.{cut.name}", cut.dim] = kept_entries(size, spans, group.units, plan.kept[group.name])
                if side == "norm":
                    name = f"{path}.{cut.name}"
                    sliced[name] = sliced[name].clone()
                    rescale_norm_(sliced[name], before=len(entries[name, 0]), after=size)
    # Tied weights are stored once, and named_parameters names each once.
    for name, tensor in dense.named_parameters():
        runs = [(dim, entries[name, dim]) for dim in range(tensor.ndim) if (name, dim) in entries]
        if len(runs) > 1:
            raise GroupMismatchError(f"{name!r} is cut along two dimensions: filling it is not supported")
        if runs:
            dim, kept = runs[0]
            tensor.index_copy_(dim, torch.tensor(kept, device=tensor.device), sliced[name].to(tensor))
        else:
            tensor.copy_(sliced[name])


UnitSums: TypeAlias = Mapping[tuple[str, Span], Tensor]
"""group name and span -> (units,) sums of the frozen weights of every unit"""


@torch.no_grad()
def unit_sums(model: nn.Module, groups: Sequence[Group], *, refitted: bool = False) -> UnitSums:
    """Return a fingerprint of every unit's frozen weights, adapters left out; of a refitted model without what was refitted."""
    sums: dict[tuple[str, Span], Tensor] = {}
    for group in groups:
        for place, span in enumerate(s for s in group.spans if s.side == "out" or (s.side == "in" and not refitted)):
            cut = next(cuts(base_layer(find_module(model, span.module)), span.side))
            entries = cut.tensor.detach().double().sum(1 - cut.dim)
            owned = entries[span.offset : span.offset + group.units * span.width]
            sums[group.name, replace(span, offset=place)] = owned.view(group.units, span.width).sum(1).cpu()
    return sums


def check_units(dense: UnitSums, sliced: UnitSums, plan: Plan) -> None:
    """Raise a VerificationError unless the sliced model holds exactly the units that the plan names.

    `sliced` must be taken before LoRA is merged: frozen weights are the dense model's own.
    """
    for (name, span), found in sliced.items():
        expected = dense[name, span][list(plan.kept[name])]
        if found.shape != expected.shape or not torch.allclose(found, expected, rtol=1e-9, atol=1e-9):
            raise VerificationError(
                f"{span.module!r} does not hold the units that the plan of {name!r} names; nothing was saved. Please report "
                "this with the command and the output of `loraprune inspect`"
            )


def masked_logits(
    dense: PreTrainedModel,
    sliced: Mapping[str, Tensor],
    groups: Sequence[Group],
    plan: Plan,
    tokens: Int[Tensor, "rows tokens"],
) -> Float[Tensor, "rows tokens vocabulary"]:
    """Return the logits of the dense architecture with the kept weights filled in and dropped units masked.

    Modifies `dense`, whose dropped units keep their own, non-zero weights: only the masks silence them.
    """
    fill_dense_(dense, sliced, groups, plan)
    masks = Masks(dense, groups)
    masks.set(plan.kept)
    logits = logits_of(dense, tokens)
    masks.remove()
    return logits


def weights_of(folder: Path) -> dict[str, Tensor]:
    """Return all tensors in the safetensors files of a folder."""
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors
