"""Scores over time: Eq 11 on the units that are left, and no number that is none."""

from __future__ import annotations

import math

import pytest
import torch

from loraprune.errors import NumericsError
from loraprune.importance import RunningScores
from loraprune.plan import Plan


def scores_of(*values: float) -> dict[str, torch.Tensor]:
    return {"a": torch.tensor(values, dtype=torch.float64)}


def test_the_average_follows_equation_11() -> None:
    running, plan = RunningScores({"a": 2}, decay=0.9), Plan({"a": 2}, {"a": (0, 1)})
    expected = [0.0, 0.0]
    for new in ((1.0, 5.0), (3.0, 0.0), (2.0, 2.0)):
        running.update(scores_of(*new), plan)
        expected = [0.9 * old + 0.1 * value for old, value in zip(expected, new, strict=True)]
    assert running.values["a"].tolist() == pytest.approx(expected, rel=1e-12)
    assert running.updates == 3


def test_units_that_are_gone_keep_their_last_score() -> None:
    running = RunningScores({"a": 3}, decay=0.5)
    running.update(scores_of(2.0, 4.0, 6.0), Plan({"a": 3}, {"a": (0, 1, 2)}))
    running.update(scores_of(10.0, 20.0), Plan({"a": 3}, {"a": (0, 2)}))
    assert running.values["a"].tolist() == [5.5, 2.0, 11.5]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_number_is_refused_and_changes_nothing(bad: float) -> None:
    running, plan = RunningScores({"a": 2, "b": 1}, decay=0.9), Plan({"a": 2, "b": 1}, {"a": (0, 1), "b": (0,)})
    good = torch.ones(1, dtype=torch.float64)
    with pytest.raises(NumericsError, match="a score of 'a'"):
        running.update({"b": good, **scores_of(1.0, bad)}, plan)
    assert running.updates == 0
    assert running.values["b"].tolist() == [0.0]


def test_ranking_is_from_best_to_worst_and_ties_keep_the_lower_index() -> None:
    running = RunningScores({"a": 5}, decay=0.0)
    running.update(scores_of(1.0, 3.0, 1.0, 7.0, 3.0), Plan({"a": 5}, {"a": (0, 1, 2, 3, 4)}))
    assert running.ranked("a", range(5)) == [3, 1, 4, 0, 2]
    assert running.ranked("a", (0, 2, 4)) == [4, 0, 2]
