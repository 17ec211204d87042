"""A balanced allocation keeps all layers equal, meets the ratio, and lets the scores choose the split."""

from __future__ import annotations

import random

import pytest

from loraprune.errors import PlanError
from loraprune.groups import Group
from loraprune.plan import Budget
from loraprune.pruning.allocation import Scores, Space
from loraprune.pruning.allocation.balanced import balanced_counts

LAYERS, HEADS, CHANNELS = 3, 8, 64


def space(*, round_to: int = 4) -> Space:
    groups = []
    for layer in range(LAYERS):
        groups += [Group(f"{layer}.attn", "attention", HEADS, ()), Group(f"{layer}.mlp", "ffn", CHANNELS, ())]
    each = {group.name: 100 if group.kind == "attention" else 10 for group in groups}
    budget = Budget(each, {group.name: group.units for group in groups})
    return Space(tuple(groups), budget, round_to, lambda counts: True)


def scored(attention: float, ffn: float, *, seed: int = 0) -> Scores:
    draw = random.Random(seed)
    return {
        group.name: [(attention if group.kind == "attention" else ffn) * draw.random() for _ in range(group.units)]
        for group in space().groups
    }


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.5, 0.7])
@pytest.mark.parametrize(("attention", "ffn"), [(1.0, 1.0), (100.0, 1.0), (1.0, 100.0)])
def test_meets_the_ratio_with_equal_layers(ratio: float, attention: float, ffn: float) -> None:
    place = space()
    counts = balanced_counts(place, ratio, scored(attention, ffn))
    assert len({counts[f"{layer}.attn"] for layer in range(LAYERS)}) == 1
    assert len({counts[f"{layer}.mlp"] for layer in range(LAYERS)}) == 1
    assert abs(place.budget.ratio(counts) - ratio) <= place.half_step()


def test_scores_choose_the_split() -> None:
    precious_heads = balanced_counts(space(), 0.4, scored(1000.0, 1.0))
    precious_channels = balanced_counts(space(), 0.4, scored(1.0, 1000.0))
    assert precious_heads["0.attn"] == HEADS
    assert precious_channels["0.attn"] < precious_heads["0.attn"]
    assert precious_channels["0.mlp"] > precious_heads["0.mlp"]


def test_choice_is_the_cheapest_of_all_splits() -> None:
    place = space()
    scores = scored(30.0, 1.0, seed=3)
    counts = balanced_counts(place, 0.5, scores)

    def lost(heads: int, channels: int) -> float:
        total = 0.0
        for name, values in scores.items():
            gone = len(values) - (heads if name.endswith("attn") else channels)
            total += sum(sorted(values)[:gone])
        return total

    costs = {}
    for heads in range(1, HEADS + 1):
        for channels in range(4, CHANNELS + 1, 4):
            spread = place.spread({"attention": heads, "ffn": channels})
            if abs(place.budget.ratio(spread) - 0.5) <= place.half_step():
                costs[heads, channels] = lost(heads, channels)
    assert len(costs) > 3
    assert costs[counts["0.attn"], counts["0.mlp"]] == pytest.approx(min(costs.values()))


def test_removed_units_do_not_come_back() -> None:
    place = space()
    fewer = {name: values[: 3 if name.endswith("attn") else CHANNELS] for name, values in scored(1.0, 1000.0).items()}
    counts = balanced_counts(place, 0.6, fewer)
    assert counts["0.attn"] <= 3


def test_more_than_can_go_is_refused() -> None:
    with pytest.raises(PlanError, match=r"0\.9900"):
        balanced_counts(space(), 0.99, scored(1.0, 1.0))
