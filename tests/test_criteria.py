"""Every criterion against its definition, written out in float64 with whole matrices and real gates."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn

from loraprune.adapters import find_module, linear_paths, projection
from loraprune.criteria import criteria
from loraprune.errors import ConfigError
from loraprune.families import find_groups
from loraprune.groups import Group
from loraprune.kernels import tiles
from loraprune.masking import Masks
from loraprune.scoring import Scorer, make_scorer
from loraprune.scoring import elementwise as elementwise_tiles
from loraprune.surgery import slice_
from tests.tiny import tiny_model, tokens, with_lora

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


@contextmanager
def gates(model: nn.Module, groups: tuple[Group, ...]) -> Iterator[Mapping[str, list[Tensor]]]:
    """Multiply what every unit sends on by a real parameter, one a sample, while the block runs."""
    made: dict[str, list[Tensor]] = {}
    handles = []
    for group in groups:
        span = next(span for span in group.spans if span.side == "in")

        def multiply(_: nn.Module, args: tuple[Tensor, ...], group: Group = group, width: int = span.width) -> object:
            gate = torch.ones(len(args[0]), group.units, requires_grad=True)
            made.setdefault(group.name, []).append(gate)
            return (args[0] * gate.repeat_interleave(width, dim=1)[:, None], *args[1:])

        handles.append(find_module(model, span.module).register_forward_pre_hook(multiply))
    yield made
    for handle in handles:
        handle.remove()


@every_variant
def test_the_gate_score_is_the_squared_gradient_of_a_real_gate_averaged_over_samples(variant: str) -> None:
    model, groups = build(variant)
    batches = [tokens(3, 12, seed=0), tokens(1, 20, seed=1)]
    scorer = scorer_of("gate", model, groups)
    for ids in batches:
        backward(model, ids)
    found = scorer.collect()
    scorer.close()
    with gates(model, groups) as made:
        for ids in batches:
            backward(model, ids)
    for group in groups:
        gradients = torch.cat([gate.grad for gate in made[group.name] if gate.grad is not None]).double()
        assert gradients.shape == (4, group.units)
        torch.testing.assert_close(found[group.name], gradients.square().mean(0), rtol=1e-4, atol=1e-12)
        # Summing before squaring would be another score.
        assert not torch.allclose(found[group.name], gradients.mean(0).square(), rtol=1e-2)


def test_the_gate_score_is_the_first_order_effect_of_removing_a_unit() -> None:
    """With one sample the score is the square of dL/dm, and L(m = 1) - L(m = 1 - h) is h dL/dm to first order."""
    model, groups = build()
    ids, group, step = tokens(1, 24), groups[2], 1e-2
    scorer = scorer_of("gate", model, groups)
    backward(model, ids)
    scores = scorer.collect()[group.name]
    scorer.close()
    masks = Masks(model, groups)
    effects = []
    for unit in range(group.units):
        for mask in (mask for key, mask in masks._masks.items() if key[0] == group.name):
            width = len(mask) // group.units
            losses = []
            for sign in (1, -1):
                mask.fill_(1.0)
                mask[unit * width : (unit + 1) * width] = 1 + sign * step
                with torch.no_grad():
                    losses.append(model(input_ids=ids, labels=ids).loss.item())
            mask.fill_(1.0)
            effects.append((losses[0] - losses[1]) / (2 * step))
    # A loss of 5 in float32 is known to 5e-7, its difference over 2h to 5e-5.
    assert torch.tensor(effects).abs().tolist() == pytest.approx(scores.sqrt().tolist(), rel=1e-2, abs=1e-4)


def test_gate_scores_of_a_step_forget_the_step_before() -> None:
    model, groups = build()
    scorer = scorer_of("gate", model, groups)
    backward(model, tokens(seed=1))
    scorer.collect()
    backward(model, tokens(seed=2))
    again = scorer.collect()
    fresh = scorer_of("gate", model, groups)
    backward(model, tokens(seed=2))
    for name, scores in fresh.collect().items():
        torch.testing.assert_close(again[name], scores)
    with pytest.raises(ConfigError, match="needs a training step"):
        fresh.collect()


def test_gate_scores_are_not_gathered_in_evaluation() -> None:
    model, groups = build()
    scorer = scorer_of("gate", model, groups)
    backward(model, tokens(seed=1))
    with torch.no_grad():
        model.eval()(input_ids=tokens(7, seed=3))
    found = scorer.collect()
    alone = scorer_of("gate", model, groups)
    backward(model, tokens(seed=1))
    for name, scores in alone.collect().items():
        torch.testing.assert_close(found[name], scores)


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


@pytest.mark.parametrize("name", ["taylor", "movement"])
def test_first_order_criteria_are_the_gradient_of_a_real_gate_over_the_whole_step(name: str) -> None:
    model, groups = build()
    batches = [tokens(3, 12, seed=0), tokens(1, 20, seed=1)]
    scorer = scorer_of(name, model, groups)
    for ids in batches:
        backward(model, ids)
    found = scorer.collect()
    scorer.close()
    with gates(model, groups) as made:
        for ids in batches:
            backward(model, ids)
    for group in groups:
        total = torch.cat([gate.grad for gate in made[group.name] if gate.grad is not None]).double().mean(0)
        expected = total.abs() if name == "taylor" else -total
        torch.testing.assert_close(found[group.name], expected, rtol=1e-3, atol=1e-7)
        assert not torch.allclose(found[group.name], -expected, rtol=1e-2)  # the sign counts


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


@pytest.mark.parametrize("name", ["wanda", "flap"])
@every_variant
def test_activation_criteria_are_moments_of_what_flows_times_the_norm_of_the_column(name: str, variant: str) -> None:
    model, groups = build(variant)
    group, seen = groups[3], []
    reader = next(span.module for span in group.spans if span.side == "in")
    watch = find_module(model, reader).register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().double()))
    scorer = scorer_of(name, model, groups)
    model.train()
    with torch.no_grad():
        for batch in (tokens(3, 12, seed=0), tokens(1, 20, seed=1)):
            model(input_ids=batch)
        model.eval()(input_ids=tokens(2, 9, seed=2))  # evaluation is not counted
    watch.remove()
    z = torch.cat([values.flatten(0, 1) for values in seen[:2]])
    statistic = z.square().mean(0) if name == "wanda" else z.var(0, correction=0)
    expected = statistic * elementwise("magnitude", model, reader).square().sum(0)
    torch.testing.assert_close(scorer.collect()[group.name], expected, rtol=1e-4, atol=0)
    with pytest.raises(ConfigError, match="needs a forward pass"):
        scorer.collect()


@pytest.mark.parametrize(
    ("name", "normalize"),
    [("lora", False), ("lora", True), ("magnitude", False), ("gate", False), ("gradient", True), ("wanda", False)],
)
@every_variant
def test_scores_of_a_cut_model_are_those_of_the_masked_one(name: str, normalize: bool, variant: str) -> None:
    found = {}
    kept = {"model.layers.0.self_attn": [0, 2, 3], "model.layers.1.mlp": list(range(5, 50))}
    for way in ("masked", "cut"):
        model, groups = build(variant)
        scorer = scorer_of(name, model, groups, normalize=normalize)
        masks, left = Masks(model, groups), None
        if way == "masked":
            masks.set(kept)
            left = {group.name: kept.get(group.name, list(range(group.units))) for group in groups}
        else:
            masks.remove()
            scorer.resize(slice_(model, groups, kept))
        backward(model, tokens())
        found[way] = scorer.collect(left)
    for group in groups:
        torch.testing.assert_close(found["cut"][group.name], found["masked"][group.name], rtol=1e-3, atol=1e-10)


def test_random_scores_differ_from_step_to_step_and_repeat_with_the_seed() -> None:
    model, groups = build()
    scorer, twin = scorer_of("random", model, groups), scorer_of("random", model, groups)
    first, second, again = scorer.collect(), scorer.collect(), twin.collect()
    name = groups[1].name
    assert torch.equal(first[name], again[name])
    assert not torch.equal(first[name], second[name])


def test_a_criterion_that_needs_gradients_says_so_without_them() -> None:
    model, groups = build()
    with pytest.raises(ConfigError, match="needs gradients"):
        scorer_of("lora", model, groups).collect()
    assert scorer_of("magnitude", model, groups).collect()


def test_an_unknown_criterion_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown criterion 'magnitud' \(did you mean 'magnitude'\?\)"):
        criteria.get("magnitud")
