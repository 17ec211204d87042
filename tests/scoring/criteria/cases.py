"""Definitions of criteria written out in float64 with whole matrices, and what units of the tiny models own, by hand."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn

from loraprune.families import find_groups
from loraprune.groups import Group
from loraprune.models.adapters import projection
from loraprune.scoring import Scorer, make_scorer
from loraprune.scoring.criteria import criteria
from tests.tiny import tiny_model, with_lora

VARIANTS = ("llama", "llama-mha", "phi3", "olmo2")
"""grouped-query attention, a head of its own for every unit, fused projections, norms over all units"""
SALIENCIES = ("lora", "magnitude", "sketch")
every_variant = pytest.mark.parametrize("variant", VARIANTS)


def build(variant: str = "llama") -> tuple[PeftModel, tuple[Group, ...]]:
    model = tiny_model(variant)
    return with_lora(model), find_groups(model.config)


def scorer_of(
    name: str, model: nn.Module, groups: tuple[Group, ...], *, power: int = 2, normalize: bool = False
) -> Scorer:
    return make_scorer(criteria.get(name), model, groups, power=power, normalize=normalize, seed=0)


def backward(model: nn.Module, ids: Tensor) -> None:
    model.train()
    model(input_ids=ids, labels=ids).loss.backward()


def elementwise(name: str, model: PeftModel, path: str) -> Tensor:
    """Return the signed criterion of one projection, entry by entry as the paper defines it."""
    proj = projection(model, path)
    weight, a, b = (t.detach().double() for t in (proj.layer.weight, proj.lora_a, proj.lora_b))  # type: ignore[operator]
    merged = weight + proj.scaling * torch.einsum("or,ri->oi", b, a)
    if name == "magnitude":
        return merged
    assert proj.lora_a.grad is not None
    assert proj.lora_b.grad is not None
    grad_a, grad_b = proj.lora_a.grad.double(), proj.lora_b.grad.double()
    if name == "sketch":
        return sketched_gradient(grad_a / proj.scaling, grad_b / proj.scaling, a, b) * merged
    estimate = torch.zeros_like(merged)
    for rank in range(a.shape[0]):
        estimate += grad_b[:, rank, None] * a[None, rank]
        estimate += b[:, rank, None] * grad_a[None, rank]
        estimate -= grad_b[:, rank, None] * grad_a[None, rank]
    return estimate * merged


def sketched_gradient(grad_a: Tensor, grad_b: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return G P_A + P_B G - P_B G P_A with projectors from singular vectors; grad_a is B^T G, grad_b is G A^T."""
    rows_of_a, columns_of_b = torch.linalg.pinv(a), torch.linalg.pinv(b)
    seen_by_a, seen_by_b = grad_b @ rows_of_a.T, columns_of_b.T @ grad_a
    return seen_by_a + seen_by_b - seen_by_b @ rows_of_a @ a


def owned_entries(variant: str, group: Group, unit: int) -> list[tuple[str, str, list[int]]]:
    """Return (projection, side, entries) that a unit owns, spelled out for the tiny models by hand."""
    if group.kind == "ffn":
        if variant == "phi3":
            return [("gate_up_proj", "out", [unit, 96 + unit]), ("down_proj", "in", [unit])]
        return [("gate_proj", "out", [unit]), ("up_proj", "out", [unit]), ("down_proj", "in", [unit])]
    queries = 1 if variant == "llama-mha" else 2
    query = list(range(unit * queries * 8, (unit + 1) * queries * 8))
    key = list(range(unit * 8, (unit + 1) * 8))
    if variant == "phi3":
        fused = query + [64 + entry for entry in key] + [64 + 32 + entry for entry in key]
        return [("qkv_proj", "out", fused), ("o_proj", "in", query)]
    return [("q_proj", "out", query), ("k_proj", "out", key), ("v_proj", "out", key), ("o_proj", "in", query)]


def expected_scores(
    name: str, variant: str, model: PeftModel, groups: tuple[Group, ...], *, power: int
) -> list[Tensor]:
    """Return Eq 4 for every group: the sum over the entries that a unit owns, by explicit loops."""
    found = []
    for group in groups:
        scores = torch.zeros(group.units, dtype=torch.float64)
        for unit in range(group.units):
            for projection_name, side, entries in owned_entries(variant, group, unit):
                values = elementwise(name, model, f"{group.name}.{projection_name}").abs() ** power
                scores[unit] += values[entries].sum() if side == "out" else values[:, entries].sum()
        found.append(scores)
    return found
