"""What every allocation promises, for any model: the ratio, the floors, widths that were there, and the same answer twice."""

from __future__ import annotations

import random
from collections.abc import Mapping
from itertools import pairwise

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from loraprune.errors import PlanError
from loraprune.pruning.allocation import ALLOCATIONS, Scores, Space, towards
from loraprune.pruning.allocation.ranked import FLOOR
from tests.pruning.allocation.test_uniform import decoders, space

NAMES = sorted(ALLOCATIONS)
RATIOS = st.floats(0, 0.9)


def scored(of: Space, seed: int) -> Scores:
    """Return scores of all units: heads are worth about what they cost, with a few orders of magnitude between units."""
    draw = random.Random(seed)
    each = of.budget.unit_parameters
    return {
        group.name: [each[group.name] * 10 ** draw.uniform(-3, 3) for _ in range(group.units)] for group in of.groups
    }


def counts_of(name: str, of: Space, ratio: float, scores: Scores) -> dict[str, int]:
    """Return the counts of an allocation; a ratio that it refuses is none of this test."""
    try:
        return ALLOCATIONS[name].counts(of, ratio, scores)
    except PlanError:
        assume(False)
        raise


def one_step(name: str, of: Space) -> float:
    """Return what a rounding step of the FFN is worth: in all layers where they are equal, in one where they are not."""
    ffns = [group for group in of.groups if group.kind == "ffn"]
    step = max((b - a for a, b in pairwise([0, *of.widths(ffns[0])])), default=1)
    each = [of.budget.unit_parameters[group.name] * step for group in ffns]
    whole = max(of.budget.unit_parameters[group.name] for group in of.groups) if name == "global" else 0
    return max(sum(each), whole) / of.budget.prunable


@pytest.mark.parametrize("name", NAMES)
@given(decoder=decoders(), ratio=RATIOS, seed=st.integers(0, 9))
@settings(max_examples=60)
def test_the_ratio_is_reached_within_a_rounding_step_and_nothing_is_emptied(
    name: str, decoder: Mapping[str, int], ratio: float, seed: int
) -> None:
    of = space(**decoder)
    counts = counts_of(name, of, ratio, scored(of, seed))
    assert abs(of.budget.ratio(counts) - ratio) <= one_step(name, of) + 1e-9
    assert counts.keys() == {group.name for group in of.groups}
    for group in of.groups:
        assert 1 <= counts[group.name] <= group.units
        if name == "global":
            assert counts[group.name] >= min(group.units, max(1, round(FLOOR * group.units)))
        elif name != "paper":
            assert counts[group.name] in of.widths(group)


@pytest.mark.parametrize("name", NAMES)
@given(decoder=decoders(), ratio=RATIOS, seed=st.integers(0, 9))
@settings(max_examples=40)
def test_the_answer_is_the_same_twice_and_layers_are_equal_where_promised(
    name: str, decoder: Mapping[str, int], ratio: float, seed: int
) -> None:
    of, scores = space(**decoder), scored(space(**decoder), seed)
    counts = counts_of(name, of, ratio, scores)
    assert counts_of(name, of, ratio, {key: list(values) for key, values in reversed(scores.items())}) == counts
    if ALLOCATIONS[name].equal:
        assert all(len({counts[group.name] for group in groups}) == 1 for groups in of.by_kind().values())


@pytest.mark.parametrize("name", NAMES)
@given(decoder=decoders(), ratio=RATIOS, more=st.floats(0, 0.5))
@settings(max_examples=40)
def test_a_larger_ratio_never_removes_less_by_more_than_a_step(
    name: str, decoder: Mapping[str, int], ratio: float, more: float
) -> None:
    of = space(**decoder)
    scores = scored(of, 0)
    less, further = (counts_of(name, of, wanted, scores) for wanted in (ratio, min(0.95, ratio + more)))
    assert of.budget.kept(further) <= of.budget.kept(less) + one_step(name, of) * of.budget.prunable


@pytest.mark.parametrize("name", NAMES)
@given(decoder=decoders(), ratio=RATIOS, way=st.lists(st.floats(0, 1), min_size=2, max_size=6))
@settings(max_examples=30)
def test_the_way_to_any_end_never_goes_back(
    name: str, decoder: Mapping[str, int], ratio: float, way: list[float]
) -> None:
    of = space(**decoder)
    final = counts_of(name, of, ratio, scored(of, 1))
    steps = [towards(of, final, progress) for progress in sorted(way)]
    for earlier, later in pairwise(steps):
        assert all(earlier[key] >= later[key] >= final[key] for key in final)
    assert towards(of, final, 1.0) == final


@given(decoder=decoders(), ratio=RATIOS, seed=st.integers(0, 9))
@settings(max_examples=40)
def test_with_equal_scores_a_ranking_takes_the_lower_place_first(
    decoder: Mapping[str, int], ratio: float, seed: int
) -> None:
    of = space(**decoder)
    equal = {group.name: [1.0] * group.units for group in of.groups}
    first = counts_of("global", of, ratio, equal)
    assert first == counts_of("global", of, ratio, dict(random.Random(seed).sample(list(equal.items()), len(equal))))
