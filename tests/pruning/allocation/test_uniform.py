"""The ratio reached is the ratio asked for, in parameters, with widths that can be stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from loraprune.config.pruning import LoRAPruneConfig
from loraprune.errors import PlanError
from loraprune.families import find_groups
from loraprune.groups import Group
from loraprune.plan import Budget
from loraprune.pruning.allocation import Space, exact_counts, towards
from loraprune.pruning.allocation.exact import widths_left
from loraprune.pruning.allocation.uniform import uniform_counts
from loraprune.pruning.target import find_target, make_space
from tests.tiny import tiny_model


def anything(_: Mapping[str, int]) -> bool:
    return True


def space(
    *, layers: int = 2, heads: int = 4, ffn: int = 96, head_cost: int = 3072, channel_cost: int = 192, step: int = 8
) -> Space:
    """Return a space like a decoder's; by default that of the tiny Llama."""
    groups, each = [], {}
    for layer in range(layers):
        sizes = {"num_attention_heads": 2, "num_key_value_heads": 1}
        groups.append(Group(f"{layer}.attn", "attention", heads, (), sizes))
        groups.append(Group(f"{layer}.mlp", "ffn", ffn, (), {"intermediate_size": 1}))
        each |= {f"{layer}.attn": head_cost, f"{layer}.mlp": channel_cost}
    return Space(tuple(groups), Budget(each, {g.name: g.units for g in groups}), step, anything)


def half_step(of: Space) -> float:
    """Return half of one step of width in every FFN, as a ratio; written without the code under test."""
    ffns = [group for group in of.groups if group.kind == "ffn"]
    widest = max((b - a for a, b in pairwise([of.round, *of.widths(ffns[0])])), default=1)
    return 0.5 * widest * sum(of.budget.unit_parameters[g.name] for g in ffns) / of.budget.prunable + 1e-9


@st.composite
def decoders(draw: st.DrawFn) -> dict[str, int]:
    """Return arguments of `space` whose FFN outweighs one head and is finer-grained than heads."""
    step, head = draw(st.sampled_from([1, 4, 8, 16])), draw(st.sampled_from([8, 16, 64]))
    heads, hidden = draw(st.integers(1, 12)), draw(st.sampled_from([64, 128, 320]))
    ffn = draw(st.integers(max(2 * head * 3, step * (heads + 2)), 1200))
    return {
        "layers": draw(st.integers(1, 4)),
        "heads": heads,
        "ffn": ffn,
        "head_cost": head * hidden * draw(st.integers(2, 5)),
        "channel_cost": 3 * hidden,
        "step": step,
    }


@given(decoders(), st.floats(0, 0.95))
def test_the_ratio_is_reached_within_half_a_rounding_step(decoder: dict[str, int], ratio: float) -> None:
    of = space(**decoder)
    try:
        counts = uniform_counts(of, ratio)
    except PlanError:
        # Refused only where even one head and the narrowest FFN keep too much.
        least = of.budget.ratio({g.name: of.widths(g)[0] for g in of.groups})
        assert ratio > least
        assume(False)
    assert abs(of.budget.ratio(counts) - ratio) <= half_step(of)


@given(decoders(), st.floats(0, 0.95))
def test_widths_are_equal_in_all_layers_and_rounded(decoder: dict[str, int], ratio: float) -> None:
    of = space(**decoder)
    try:
        counts = uniform_counts(of, ratio)
    except PlanError:
        assume(False)
    for groups in of.by_kind().values():
        assert len({counts[g.name] for g in groups}) == 1
        assert all(counts[g.name] in of.widths(g) for g in groups)
    ffn = of.by_kind()["ffn"][0]
    assert counts[ffn.name] % of.round == 0 or counts[ffn.name] == ffn.units


def test_heads_stay_near_the_ratio_and_the_ffn_fills_what_they_leave() -> None:
    counts = uniform_counts(space(), 0.5)
    assert counts == {"0.attn": 2, "0.mlp": 48, "1.attn": 2, "1.mlp": 48}
    odd = uniform_counts(space(heads=3), 0.5)
    assert odd["0.attn"] in (1, 2)
    assert odd["0.mlp"] != 48


def test_a_ratio_of_zero_keeps_everything() -> None:
    of = space()
    assert uniform_counts(of, 0.0) == {g.name: g.units for g in of.groups}


def test_too_much_is_refused_with_the_largest_ratio_that_can_be_reached() -> None:
    of = space()
    largest = of.budget.ratio({g.name: of.widths(g)[0] for g in of.groups})
    with pytest.raises(PlanError, match=rf"--ratio 0.95: at most {largest:.4f}"):
        uniform_counts(of, 0.95)


def test_heads_that_cannot_be_stored_are_avoided_and_the_ratio_still_reached() -> None:
    def even(counts: Mapping[str, int]) -> bool:
        return counts["0.attn"] in (1, 2, 4)

    free = space()
    bound = Space(free.groups, free.budget, free.round, even)
    assert uniform_counts(free, 0.25)["0.attn"] == 3
    counts = uniform_counts(bound, 0.25)
    assert counts["0.attn"] in (2, 4)
    assert abs(bound.budget.ratio(counts) - 0.25) <= half_step(bound)


def test_layers_of_different_widths_are_refused() -> None:
    of = space()
    groups = (*of.groups[:-1], Group("1.mlp", "ffn", 80, ()))
    with pytest.raises(PlanError, match="uniform widths need equal layers"):
        uniform_counts(Space(groups, of.budget, 8, anything), 0.5)


def test_exact_dimensions_are_taken_as_they_are() -> None:
    assert exact_counts(space(), heads=6, ffn=41) == {"0.attn": 3, "0.mlp": 41, "1.attn": 3, "1.mlp": 41}
    assert exact_counts(space(), heads=None, ffn=41)["0.attn"] == 4
    assert exact_counts(space(), heads=2, ffn=None)["0.mlp"] == 96


@pytest.mark.parametrize(("heads", "ffn"), [(5, None), (10, None), (None, 97)])
def test_impossible_dimensions_are_refused(heads: int | None, ffn: int | None) -> None:
    with pytest.raises(PlanError, match="can keep multiples of"):
        exact_counts(space(), heads=heads, ffn=ffn)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=8))
def test_the_way_to_the_target_never_goes_back_or_below(progress: list[float]) -> None:
    of = space()
    final = uniform_counts(of, 0.6)
    way = [towards(of, final, value) for value in sorted(progress)]
    for earlier, later in pairwise(way):
        assert all(earlier[name] >= later[name] >= final[name] for name in final)
    assert towards(of, final, 0.0) == {g.name: g.units for g in of.groups}
    assert towards(of, final, 1.0) == final


@pytest.mark.parametrize("variant", ["llama", "phi3", "gemma2", "olmo2"])
@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.5, 0.7])
def test_real_models_reach_the_ratio_in_counted_parameters(variant: str, ratio: float) -> None:
    model = tiny_model(variant)
    of = make_space(model, find_groups(model.config), LoRAPruneConfig(ratio=ratio))
    counts = uniform_counts(of, ratio)
    assert of.storable(counts)
    assert abs(of.budget.ratio(counts) - ratio) <= half_step(of)


def test_a_number_of_parameters_is_a_target_for_the_whole_model() -> None:
    model = tiny_model("llama")
    target, total = find_target(model, LoRAPruneConfig(parameters="70k", round=1)), model.num_parameters()
    left = total - target.space.budget.prunable + target.space.budget.kept(target.counts)
    assert abs(left - 70_000) <= 3 * 64  # half a channel in each of two layers
    for wrong, remedy in (("10M", "choose at most"), ("10k", "choose more than")):
        with pytest.raises(PlanError, match=remedy):
            find_target(model, LoRAPruneConfig(parameters=wrong))


def test_fractions_of_heads_and_channels_leave_what_can_be_stored() -> None:
    of = space(heads=4, ffn=96, step=8)
    assert widths_left(of, heads=0.5, ffn=0.3) == (
        4,
        64,
    )  # query heads, two of a unit; 67.2 channels to a multiple of 8
    assert widths_left(of, heads=0.99, ffn=None) == (2, None)
    assert widths_left(replace(of, groups=of.groups[1::2]), heads=0.5, ffn=0.5) == (None, 48)


def test_widths_of_what_stays_whole_or_cannot_be_stored_are_refused() -> None:
    of = space()
    with pytest.raises(PlanError, match="units of kind attention are not pruned here"):
        exact_counts(replace(of, groups=of.groups[1::2]), heads=2, ffn=None)
    with pytest.raises(PlanError, match="no stock configuration"):
        exact_counts(replace(of, storable=lambda _: False), heads=2, ffn=None)
    other = Group("experts", "expert", 4, (), {})
    assert exact_counts(replace(of, groups=(*of.groups, other)), heads=2, ffn=48)["experts"] == 4
