"""Criteria on gates and activations against real gates and plain moments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest
import torch
from jaxtyping import Float
from torch import Tensor, nn

from loraprune.errors import ConfigError
from loraprune.groups import Group
from loraprune.models.adapters import find_module
from loraprune.pruning.masking import Masks
from tests.scoring.criteria.cases import (
    backward,
    build,
    elementwise,
    every_variant,
    scorer_of,
)
from tests.tiny import tokens


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


def scored_beside_real_gates(
    name: str, model: nn.Module, groups: tuple[Group, ...]
) -> Iterator[tuple[Tensor, Float[Tensor, "samples units"]]]:
    """Yield a criterion's scores of every group, and the gradients of its real gates over the same two micro-batches."""
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
        gradients = torch.cat([gate.grad for gate in made[group.name] if gate.grad is not None]).double()
        assert gradients.shape == (4, group.units)
        yield found[group.name], gradients


@every_variant
def test_the_gate_score_is_the_squared_gradient_of_a_real_gate_averaged_over_samples(variant: str) -> None:
    for found, gradients in scored_beside_real_gates("gate", *build(variant)):
        torch.testing.assert_close(found, gradients.square().mean(0), rtol=1e-4, atol=1e-12)
        # Summing before squaring would be another score.
        assert not torch.allclose(found, gradients.mean(0).square(), rtol=1e-2)


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


@pytest.mark.parametrize("name", ["taylor", "movement"])
def test_first_order_criteria_are_the_gradient_of_a_real_gate_over_the_whole_step(name: str) -> None:
    for found, gradients in scored_beside_real_gates(name, *build()):
        total = gradients.mean(0)
        expected = total.abs() if name == "taylor" else -total
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-7)
        assert not torch.allclose(found, -expected, rtol=1e-2)  # the sign counts


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
