"""Whole layers go where that loses less score than narrower ones, and the ratio is met all the same."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from loraprune.errors import PlanError
from loraprune.families.depth import gone_layers
from loraprune.groups import Group
from loraprune.plan import Budget, Plan
from loraprune.pruning.allocation import Scores, Space, towards
from loraprune.pruning.allocation.balanced import balanced_counts

LAYERS, HEADS, CHANNELS = 4, 8, 64


def space(*, layers: bool = True) -> Space:
    groups = []
    for layer in range(LAYERS):
        path = f"layers.{layer}"
        groups += [Group(f"{path}.attn", "attention", HEADS, ()), Group(f"{path}.mlp", "ffn", CHANNELS, ())]
    each = {group.name: 100 if group.kind == "attention" else 10 for group in groups}
    budget = Budget(each, {group.name: group.units for group in groups})
    return Space(tuple(groups), budget, 4, lambda counts: True, layers=layers)


def scored(*worth: float, seed: int = 0) -> Scores:
    """Return random scores, those of each layer times its worth."""
    draw = random.Random(seed)
    return {g.name: [worth[int(g.name.split(".")[1])] * draw.random() for _ in range(g.units)] for g in space().groups}


def lost(counts: dict[str, int], scores: Scores) -> float:
    return sum(sum(sorted(values)[: len(values) - counts[name]]) for name, values in scores.items())


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.5, 0.7])
@pytest.mark.parametrize("worth", [(1, 1, 1, 1), (1, 1e-3, 1, 1), (1e-3, 1, 1e-3, 1)])
def test_the_ratio_is_met_and_no_more_is_lost_than_without(ratio: float, worth: tuple[float, ...]) -> None:
    scores = scored(*worth)
    counts, wide = balanced_counts(space(), ratio, scores), balanced_counts(space(layers=False), ratio, scores)
    assert abs(space().budget.ratio(counts) - ratio) <= space().half_step()
    assert lost(counts, scores) <= lost(wide, scores)


def test_a_worthless_layer_goes_and_equal_ones_stay() -> None:
    assert gone_layers(balanced_counts(space(), 0.4, scored(1, 1e-4, 1, 1))) == ("layers.1",)
    assert gone_layers(balanced_counts(space(layers=False), 0.4, scored(1, 1e-4, 1, 1))) == ()
    assert gone_layers(balanced_counts(space(), 0.2, scored(1, 1, 1, 1))) == ()


def test_two_layers_may_go_never_all() -> None:
    assert gone_layers(balanced_counts(space(), 0.6, scored(1, 1e-4, 1, 1e-4))) == ("layers.1", "layers.3")
    with pytest.raises(PlanError, match=r"0\.9990"):
        balanced_counts(space(), 0.999, scored(1, 1, 1, 1))


def test_a_layer_that_has_begun_to_go_goes_even_if_another_scores_less_later() -> None:
    place, scores = space(), scored(1, 1e-4, 1, 1)
    halfway = towards(place, balanced_counts(place, 0.4, scores), 0.5)
    assert 0 < halfway["layers.1.attn"] < halfway["layers.0.attn"]
    turned = {name: sorted(values)[-halfway[name] :] for name, values in scored(1e-4, 1, 1, 1).items()}
    counts = balanced_counts(place, 0.4, turned)
    assert "layers.1" in gone_layers(counts)
    assert all(counts[name] <= have for name, have in halfway.items())


def test_on_the_way_every_group_keeps_something_and_in_the_end_the_layer_is_empty() -> None:
    place = space()
    final = balanced_counts(place, 0.4, scored(1, 1e-4, 1, 1))
    assert min(towards(place, final, 0.99).values()) >= 1
    assert towards(place, final, 1.0) == final


def test_a_plan_may_empty_a_layer_but_not_half_of_one() -> None:
    groups = space().groups
    full = Plan.full(groups).kept
    whole = Plan(Plan.full(groups).units, {**full, "layers.1.attn": (), "layers.1.mlp": ()})
    assert Plan.from_json(whole.to_json()) == whole
    with pytest.raises(PlanError, match=r"layers\.1\.attn.* keeps no unit"):
        replace(whole, kept={**full, "layers.1.attn": ()})
