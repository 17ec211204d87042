"""Criteria on convolutions against whole kernels and real gates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn

from loraprune.families import find_groups
from loraprune.groups import Group, readers
from loraprune.models.adapters import base_layer, find_module, linear_paths, projection
from tests.scoring.criteria.cases import scorer_of
from tests.tiny import tiny_config, tiny_model, with_lora
from tests.vision import image_batch

NETWORKS = ("resnet", "resnet-basic", "convnext")


def build(variant: str) -> tuple[PeftModel, tuple[Group, ...]]:
    return with_lora(tiny_model(variant)).double(), find_groups(tiny_config(variant))


def fixed(model: PeftModel) -> PeftModel:
    """Return a model in training, as criteria watch it, but for batch norm: its statistics stay."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return model


def batch() -> dict[str, Tensor]:
    return {name: value.double() if value.is_floating_point() else value for name, value in image_batch().items()}


def kernels(model: PeftModel, path: str, *, grad: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return W0, A and B of a projection, or nothing for W0 and the gradients, as (out, in, places), (rank, in, places), (out, rank)."""
    proj = projection(model, path)
    weight: Any = proj.layer.weight
    a, b = (proj.lora_a.grad, proj.lora_b.grad) if grad else (proj.lora_a.detach(), proj.lora_b.detach())
    assert a is not None
    assert b is not None
    return (
        weight.detach().flatten(2) if weight.ndim == 4 else weight.detach()[..., None],
        a.reshape(*a.shape[:2], -1),
        b.flatten(1),
    )


def saliency(name: str, model: PeftModel, path: str) -> Tensor:
    """Return a criterion of every entry of a kernel (out, in, places), written out."""
    weight, a, b = kernels(model, path, grad=False)
    merged = weight + projection(model, path).scaling * torch.einsum("or,rip->oip", b, a)
    if name == "magnitude":
        return merged
    _, grad_a, grad_b = kernels(model, path, grad=True)
    estimate = torch.einsum("or,rip->oip", grad_b, a) + torch.einsum("or,rip->oip", b - grad_b, grad_a)
    return estimate * merged


def totals(group: Group, entries: Mapping[str, Tensor], *, power: int = 2) -> Tensor:
    """Add up what each channel owns: rows of what writes it, columns of what reads it."""
    found = torch.zeros(group.units, dtype=torch.float64)
    for span in group.spans:
        if span.side in ("out", "in"):
            found += entries[span.module].abs().pow(power).sum((1, 2) if span.side == "out" else (0, 2))
    return found


@pytest.mark.parametrize("variant", NETWORKS)
@pytest.mark.parametrize("name", ["lora", "magnitude"])
@pytest.mark.parametrize("power", [1, 2])
def test_a_channel_scores_what_its_rows_and_columns_of_kernels_do(variant: str, name: str, power: int) -> None:
    model, groups = build(variant)
    model.train()(**batch()).loss.backward()
    entries = {path: saliency(name, model, path) for path in linear_paths(groups)}
    found = scorer_of(name, model, groups, power=power).collect()
    for group in groups:
        torch.testing.assert_close(found[group.name], totals(group, entries, power=power), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("variant", NETWORKS)
def test_the_gradient_criterion_sees_the_true_gradient_of_a_kernel(variant: str) -> None:
    model, groups = build(variant)
    scorer = scorer_of("gradient", model, groups)
    weights: dict[str, Any] = {path: projection(model, path).layer.weight for path in linear_paths(groups)}
    for weight in weights.values():
        weight.requires_grad_()
    fixed(model)(**batch()).loss.backward()
    entries = {}
    for path, weight in weights.items():
        merged = projection(model, path).merged_rows(0, weight.shape[0]).view(weight.shape)
        product = weight.grad * merged
        entries[path] = product.flatten(2) if product.ndim == 4 else product[..., None]
    found = scorer.collect()
    for group in groups:
        torch.testing.assert_close(found[group.name], totals(group, entries), rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("variant", NETWORKS)
def test_the_gate_of_a_channel_stands_before_all_that_read_it(variant: str) -> None:
    """A stream is read by convolutions and by the addition behind them: only what reads it by weights counts, each once."""
    model, groups = build(variant)
    gates = {group.name: torch.ones(4, group.units, dtype=torch.float64, requires_grad=True) for group in groups}
    handles = []
    for group in groups:
        for span in readers(group):

            def multiply(module: nn.Module, args: tuple[Tensor, ...], name: str = group.name) -> object:
                x, gate = args[0], gates[name]
                convolution = isinstance(base_layer(module), nn.Conv2d)
                shape = (*gate.shape, 1, 1) if convolution else (len(gate), *(1,) * (x.ndim - 2), gate.shape[1])
                return (x * gate.view(shape), *args[1:])

            handles.append(find_module(model, span.module).register_forward_pre_hook(multiply))
    fixed(model)(**batch()).loss.backward()
    for handle in handles:
        handle.remove()
    model.zero_grad()
    scorer = scorer_of("gate", model, groups)
    fixed(model)(**batch()).loss.backward()
    found = scorer.collect()
    for group in groups:
        gradient = gates[group.name].grad
        assert gradient is not None
        expected = gradient.square().mean(0)
        torch.testing.assert_close(found[group.name], expected, rtol=1e-4, atol=1e-10)  # gathered in float32
