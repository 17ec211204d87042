"""A plan is valid or refused, survives its file, and its budget counts real parameters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraprune.errors import CheckpointError, PlanError
from loraprune.groups import Group
from loraprune.plan import Budget, Plan

Kept = dict[str, tuple[int, ...]]


@st.composite
def choices(draw: st.DrawFn) -> tuple[dict[str, int], Kept, Kept]:
    """Return units, kept units, and fewer kept units; plans are made of them only in the tests.

    The run-time type checks draw random numbers, which strategies must not.
    """
    units = draw(st.dictionaries(st.text("abc.", min_size=1, max_size=6), st.integers(1, 12), min_size=1, max_size=4))
    kept = {name: tuple(sorted(draw(st.sets(st.integers(0, n - 1), min_size=1)))) for name, n in units.items()}
    fewer = {name: tuple(sorted(draw(st.sets(st.sampled_from(k), min_size=1)))) for name, k in kept.items()}
    return units, kept, fewer


@given(choices())
def test_a_plan_survives_its_file(choice: tuple[dict[str, int], Kept, Kept]) -> None:
    units, kept, _ = choice
    plan = Plan(units, kept)
    assert Plan.from_json(plan.to_json()) == plan


@given(choices())
def test_positions_lead_from_the_present_units_to_the_smaller_plan(choice: tuple[dict[str, int], Kept, Kept]) -> None:
    units, kept, fewer = choice
    positions = Plan(units, kept).positions(Plan(units, fewer))
    assert positions.keys() == units.keys()
    for name, places in positions.items():
        assert tuple(kept[name][place] for place in places) == fewer[name]


def test_a_removed_unit_cannot_come_back() -> None:
    plan, other = Plan({"a": 4}, {"a": (0, 2)}), Plan({"a": 4}, {"a": (0, 1)})
    with pytest.raises(PlanError, match="unit 1 was removed before"):
        plan.positions(other)


@pytest.mark.parametrize("kept", [(), (1, 0), (0, 0), (-1, 2), (0, 4)], ids=str)
def test_impossible_units_are_refused(kept: tuple[int, ...]) -> None:
    with pytest.raises(PlanError, match="group 'a' keeps"):
        Plan({"a": 4}, {"a": kept})


def test_both_halves_of_a_plan_must_name_the_same_groups() -> None:
    with pytest.raises(PlanError, match="'b' is in only one half"):
        Plan({"a": 1, "b": 1}, {"a": (0,)})


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"groups": 3}', '{"groups": {"a": {"units": 2}}}', '{"groups": {"a": 1}}']
)
def test_a_malformed_file_is_refused(text: str) -> None:
    with pytest.raises(CheckpointError, match=r"plan\.json is malformed"):
        Plan.from_json(text)


def test_a_folder_without_a_plan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no plan\.json"):
        Plan.read(tmp_path)
    (tmp_path / "plan.json").write_text(Plan({"a": 2}, {"a": (1,)}).to_json())
    assert Plan.read(tmp_path).kept == {"a": (1,)}


def test_the_file_names_its_format_and_its_groups() -> None:
    assert json.loads(Plan({"a": 2}, {"a": (1,)}).to_json()) == {
        "format": 1,
        "groups": {"a": {"units": 2, "kept": [1]}},
    }


def test_the_full_plan_keeps_every_unit() -> None:
    plan = Plan.full([Group("a", "ffn", 3, ())])
    assert plan.kept == {"a": (0, 1, 2)}


def test_the_ratio_weighs_units_by_their_parameters() -> None:
    budget = Budget({"heads": 100, "channels": 3}, {"heads": 4, "channels": 200})
    assert budget.prunable == 1000
    assert budget.ratio({"heads": 4, "channels": 200}) == 0.0
    assert budget.ratio({"heads": 2, "channels": 200}) == pytest.approx(0.2)
    assert budget.ratio({"heads": 2, "channels": 100}) == pytest.approx(0.5)


@given(choices())
def test_plans_one_after_the_other_are_one_plan(choice: tuple[dict[str, int], Kept, Kept]) -> None:
    units, kept, fewer = choice
    first, both = Plan(units, kept), Plan(units, fewer)
    places = {name: tuple(found.tolist()) for name, found in first.positions(both).items()}
    assert first.then(Plan({name: len(found) for name, found in kept.items()}, places)) == both


@pytest.mark.parametrize("later", [Plan({"a": 4}, {"a": (1,)}), Plan({"b": 2}, {"b": (1,)})], ids=["dense", "other"])
def test_a_later_plan_about_other_units_is_refused(later: Plan) -> None:
    with pytest.raises(PlanError, match="group 'a': 2 units are kept, the later plan is about"):
        Plan({"a": 4}, {"a": (0, 2)}).then(later)
