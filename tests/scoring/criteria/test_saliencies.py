"""Elementwise criteria against their definitions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from loraprune.groups import Group
from loraprune.models.adapters import linear_paths, projection
from loraprune.scoring import make_scorer
from loraprune.scoring.criteria import criteria
from loraprune.scoring.kernels import tiles
from loraprune.scoring.scorers import elementwise as elementwise_tiles
from tests.scoring.criteria.cases import (
    SALIENCIES,
    backward,
    build,
    elementwise,
    every_variant,
    expected_scores,
    owned_entries,
    scorer_of,
    sketched_gradient,
)
from tests.tiny import tokens


@pytest.mark.parametrize("name", SALIENCIES)
@pytest.mark.parametrize("power", [1, 2])
@every_variant
def test_a_saliency_is_its_definition_summed_over_what_a_unit_owns(name: str, power: int, variant: str) -> None:
    model, groups = build(variant)
    backward(model, tokens())
    found = scorer_of(name, model, groups, power=power).collect()
    expected = expected_scores(name, variant, model, groups, power=power)
    for group, scores in zip(groups, expected, strict=True):
        torch.testing.assert_close(found[group.name], scores, rtol=2e-5, atol=0)
    # The other power is another score.
    other = scorer_of(name, model, groups, power=3 - power).collect()
    assert not torch.allclose(other[groups[0].name], expected[0], rtol=1e-2)


def test_every_term_of_equation_10_matters() -> None:
    model, groups = build()
    backward(model, tokens())
    path = linear_paths(groups)[0]
    proj = projection(model, path)
    full = elementwise("lora", model, path)
    assert proj.lora_a.grad is not None
    assert proj.lora_b.grad is not None
    merged = elementwise("magnitude", model, path)
    terms = [
        proj.lora_b.grad.double() @ proj.lora_a.double(),
        proj.lora_b.double() @ proj.lora_a.grad.double(),
        -proj.lora_b.grad.double() @ proj.lora_a.grad.double(),
    ]
    torch.testing.assert_close(sum(terms) * merged, full)
    for left_out in range(3):
        rest = sum(term for index, term in enumerate(terms) if index != left_out)
        assert not torch.allclose(rest * merged, full, rtol=1e-6)


@every_variant
@pytest.mark.parametrize("name", SALIENCIES)
def test_tiles_of_any_size_give_the_same_scores(name: str, variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, groups = build(variant)
    backward(model, tokens())
    whole = scorer_of(name, model, groups).collect()
    for size in (1, 7 * 64 * 4, 1 << 30):  # one row, seven rows (a remainder is left), everything
        monkeypatch.setitem(elementwise_tiles.TILE_BYTES, "cpu", size)
        monkeypatch.setitem(tiles.TILE_BYTES, "cpu", size)
        for group, scores in scorer_of(name, model, groups).collect().items():
            torch.testing.assert_close(scores, whole[group], rtol=1e-5, atol=0)


@pytest.mark.parametrize("power", [1, 2])
@every_variant
def test_the_fused_sums_are_those_of_the_elementwise_saliency(variant: str, power: int) -> None:
    model, groups = build(variant)
    backward(model, tokens())
    fused = criteria.get("lora")
    found = {}
    for criterion in (
        fused,
        dataclasses.replace(fused, fused=None),
        dataclasses.replace(fused, function=lambda _: torch.nan),
    ):
        scorer = make_scorer(criterion, model, groups, power=power, normalize=False, seed=0)
        scores = scorer.collect()
        for name in scores:
            torch.testing.assert_close(scores[name], found.setdefault(name, scores[name]), rtol=1e-5, atol=0)


@pytest.mark.parametrize("variant", ["llama", "phi3"])
def test_normalising_divides_each_span_by_its_norm(variant: str) -> None:
    model, groups = build(variant)
    backward(model, tokens())
    found = scorer_of("lora", model, groups, power=1, normalize=True).collect()
    for group in groups:
        expected = torch.zeros(group.units, dtype=torch.float64)
        for span in group.spans:
            values = elementwise("lora", model, span.module).abs()
            sums = values.sum(1) if span.side == "out" else values.sum(0)
            part = sums[span.offset : span.offset + group.units * span.width].view(group.units, -1).sum(1)
            expected += part / part.norm()
        torch.testing.assert_close(found[group.name], expected, rtol=2e-5, atol=0)


def test_the_sketch_sees_what_lora_cannot() -> None:
    """Eq 9 multiplies by A and B as they are; projected, the estimate does not change with the length of either factor."""
    generator = torch.Generator().manual_seed(0)
    grad, a, b = (torch.randn(s, generator=generator, dtype=torch.float64) for s in ((40, 30), (4, 30), (40, 4)))
    found = [sketched_gradient((size * b).T @ grad, grad @ a.T, a, size * b) for size in (1e-3, 1.0, 30.0)]
    for estimate in found:
        torch.testing.assert_close(estimate, found[0])
        assert (estimate - grad).norm() < grad.norm()
    ratio = [(grad @ a.T @ a + size * b @ (size * b).T @ grad).norm() / grad.norm() for size in (1e-3, 30.0)]
    assert ratio[1] > 100 * ratio[0]  # the control: Eq 9's first two terms


def true_gradients(variant: str, ids: Tensor) -> tuple[PeftModel, tuple[Group, ...], Mapping[str, Tensor]]:
    """Return an adapted model after a backward pass, and autograd's own dL/dW of every projection."""
    model, groups = build(variant)
    weights = {path: projection(model, path).layer.weight for path in linear_paths(groups)}
    for weight in weights.values():
        weight.requires_grad_(True)
    backward(model, ids)
    return model, groups, {path: weight.grad.double() for path, weight in weights.items()}  # type: ignore[operator, union-attr]


@pytest.mark.parametrize("power", [1, 2])
@every_variant
def test_the_vanilla_criterion_is_weight_times_its_true_gradient(variant: str, power: int) -> None:
    ids = tokens()
    reference, groups, gradients = true_gradients(variant, ids)
    model, _ = build(variant)
    scorer = scorer_of("gradient", model, groups, power=power)
    backward(model, ids)
    found = scorer.collect()
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)  # nothing that clipping would see
    for group in groups:
        for unit in (0, group.units - 1):
            expected = 0.0
            for name, side, entries in owned_entries(variant, group, unit):
                path = f"{group.name}.{name}"
                values = (elementwise("magnitude", reference, path) * gradients[path]).abs() ** power
                expected += float(values[entries].sum() if side == "out" else values[:, entries].sum())
            assert found[group.name][unit].item() == pytest.approx(expected, rel=1e-3)
