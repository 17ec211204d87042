"""Allocations that give every layer its own width: one ranking over the model, and the authors' kept layers."""

from __future__ import annotations

import itertools

import pytest

from loraprune.errors import PlanError
from loraprune.pruning.allocation.paper import paper_counts
from loraprune.pruning.allocation.ranked import ranked_counts
from tests.pruning.allocation.test_balanced import CHANNELS, HEADS, scored, space


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.3, 0.5, 0.7, 0.85])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_ranking_meets_the_ratio_to_half_a_rounding_step(ratio: float, seed: int) -> None:
    place = space()
    counts = ranked_counts(place, ratio, scored(30.0, 1.0, seed=seed))
    half_a_step = 4 * 10 / 2 / place.budget.prunable
    assert abs(place.budget.ratio(counts) - ratio) <= half_a_step + 1e-12
    assert all(count % 4 == 0 for name, count in counts.items() if name.endswith("mlp"))
    assert all(count >= 1 for count in counts.values())


def test_a_ranking_keeps_whatever_scores_more_for_its_parameters() -> None:
    place, scores = space(round_to=1), scored(30.0, 1.0, seed=5)
    counts = ranked_counts(place, 0.4, scores)
    removed, kept = [], []
    for group in place.groups:
        each = place.budget.unit_parameters[group.name]
        ordered = [value / each for value in sorted(scores[group.name])]
        gone = group.units - counts[group.name]
        removed += ordered[:gone]
        kept += ordered[gone:]
    # One head may be skipped at the end, where it would overshoot.
    assert sum(high < max(removed) for high in kept) <= 2
    assert max(sorted(removed)[:-2]) <= min(kept)


def test_a_layer_without_worth_loses_more_than_others_down_to_its_floor() -> None:
    scores = {name: [value * (1e-6 if name.startswith("1.") else 1.0) for value in values]
              for name, values in scored(30.0, 1.0).items()}  # fmt: skip
    counts = ranked_counts(space(), 0.4, scores)
    assert counts["1.mlp"] == 8  # a tenth of 64 channels, rounded up to the step of 4
    assert counts["1.attn"] == 1
    assert counts["0.mlp"] > 32 < counts["2.mlp"]


def test_a_ranking_says_how_much_can_go() -> None:
    with pytest.raises(PlanError, match=r"at most 0\.87\d+ can be removed"):
        ranked_counts(space(), 0.95, scored(1.0, 1.0))


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.5, 0.6])
def test_the_papers_layers_stay_whole_and_the_ratio_is_real(ratio: float) -> None:
    place = space()
    counts = paper_counts(place, ratio)
    assert (counts["2.attn"], counts["2.mlp"]) == (HEADS, CHANNELS)
    assert counts["0.mlp"] == counts["1.mlp"] < CHANNELS
    assert abs(place.budget.ratio(counts) - ratio) <= 2 * 4 * 10 / 2 / place.budget.prunable + 1e-12


def test_the_paper_keeps_a_tenth_at_the_front() -> None:
    groups = [(layer, kind) for layer, kind in itertools.product(range(20), ("attn", "mlp"))]
    small = space()
    many = type(small)(
        tuple(type(small.groups[0])(f"{layer}.{kind}", "attention" if kind == "attn" else "ffn", 8, ()) for layer, kind in groups),
        type(small.budget)({f"{layer}.{kind}": 10 for layer, kind in groups}, {f"{layer}.{kind}": 8 for layer, kind in groups}),
        1, lambda _: True,
    )  # fmt: skip
    counts = paper_counts(many, 0.5)
    whole = {name.split(".")[0] for name, count in counts.items() if count == 8}
    assert whole == {"0", "1", "19"}


def test_more_than_the_open_layers_hold_is_refused() -> None:
    with pytest.raises(PlanError, match=r"hold 0\.6667"):
        paper_counts(space(), 0.7)
