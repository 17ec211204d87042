"""Scores over time: Eq 11 on the units that are left, and no number that is none."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from loraprune.errors import ConfigError
from loraprune.plan import Plan
from loraprune.scoring.average import RunningScores, read_scores


def scores_of(*values: float) -> dict[str, torch.Tensor]:
    return {"a": torch.tensor(values, dtype=torch.float64)}


def test_the_average_follows_equation_11() -> None:
    running, plan = RunningScores({"a": 2}, decay=0.9), Plan({"a": 2}, {"a": (0, 1)})
    expected = [0.0, 0.0]
    for new in ((1.0, 5.0), (3.0, 0.0), (2.0, 2.0)):
        running.update(scores_of(*new), plan)
        expected = [0.9 * old + 0.1 * value for old, value in zip(expected, new, strict=True)]
    assert running.values["a"].tolist() == pytest.approx(expected, rel=1e-12)


def test_units_that_are_gone_keep_their_last_score() -> None:
    running = RunningScores({"a": 3}, decay=0.5)
    running.update(scores_of(2.0, 4.0, 6.0), Plan({"a": 3}, {"a": (0, 1, 2)}))
    running.update(scores_of(10.0, 20.0), Plan({"a": 3}, {"a": (0, 2)}))
    assert running.values["a"].tolist() == [5.5, 2.0, 11.5]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_number_is_reported_and_changes_nothing(bad: float) -> None:
    running, plan = RunningScores({"a": 2, "b": 1}, decay=0.5), Plan({"a": 2, "b": 1}, {"a": (0, 1), "b": (0,)})
    good = {"b": torch.ones(1, dtype=torch.float64), **scores_of(1.0, 3.0)}
    assert running.update(good, plan)  # the control
    assert running.problem() is None
    assert not running.update({**good, **scores_of(1.0, bad)}, plan)
    assert running.problem() == f"a score of 'a' is {bad}"
    assert running.values["b"].tolist() == [0.5]
    assert running.values["a"].tolist() == [0.5, 1.5]


def test_scores_of_a_step_that_is_to_be_skipped_change_nothing() -> None:
    running, plan = RunningScores({"a": 2}, decay=0.5), Plan({"a": 2}, {"a": (0, 1)})
    assert not running.update(scores_of(1.0, 3.0), plan, finite=torch.tensor(False))
    assert running.values["a"].tolist() == [0.0, 0.0]
    assert running.problem() is None
    assert running.update(scores_of(1.0, 3.0), plan, finite=torch.tensor(True))
    assert running.values["a"].tolist() == [0.5, 1.5]


def test_ranking_is_from_best_to_worst_and_ties_keep_the_lower_index() -> None:
    running = RunningScores({"a": 5}, decay=0.0)
    running.update(scores_of(1.0, 3.0, 1.0, 7.0, 3.0), Plan({"a": 5}, {"a": (0, 1, 2, 3, 4)}))
    assert running.ranked("a", range(5)) == [3, 1, 4, 0, 2]
    assert running.ranked("a", (0, 2, 4)) == [4, 0, 2]


@given(st.lists(st.integers(0, 4), min_size=2, max_size=30), st.integers(1, 29))
def test_the_best_units_are_the_first_of_the_ranking(values: list[int], count: int) -> None:
    running = RunningScores({"a": len(values)}, decay=0.0)
    running.update(scores_of(*map(float, values)), Plan({"a": len(values)}, {"a": tuple(range(len(values)))}))
    present = np.flatnonzero(np.arange(len(values)) % 3 != 1)  # some are gone
    count = min(count, len(present))
    assert running.best("a", present, count).tolist() == sorted(running.ranked("a", present)[:count])


def test_of_equal_parts_the_best_of_each_stay() -> None:
    running = RunningScores({"a": 6}, decay=0.0)
    running.update(scores_of(9.0, 8.0, 7.0, 1.0, 3.0, 2.0), Plan({"a": 6}, {"a": (0, 1, 2, 3, 4, 5)}))
    assert running.best("a", range(6), 4, parts=2).tolist() == [0, 1, 4, 5]
    assert running.best("a", range(6), 4).tolist() == [0, 1, 2, 4]


def test_saved_scores_are_read_as_they_were(tmp_path: Path) -> None:
    save_file({"a": torch.tensor([1.0, 2.0])}, tmp_path / "scores.safetensors")
    assert read_scores(str(tmp_path / "scores.safetensors"), {"a": 2})["a"].tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("saved", "words"),
    [
        ({"a": torch.ones(3)}, "3 scores of 'a', where the model has 2 units"),
        ({"b": torch.ones(2)}, "no scores of 'a', where the model has 2 units"),
        ({"a": torch.tensor([1.0, math.nan])}, "a score is NaN or infinite"),
    ],
)
def test_saved_scores_of_another_model_or_run_are_refused(
    saved: dict[str, torch.Tensor], words: str, tmp_path: Path
) -> None:
    save_file(saved, tmp_path / "scores.safetensors")
    with pytest.raises(ConfigError, match=words):
        read_scores(str(tmp_path / "scores.safetensors"), {"a": 2})


def test_scores_that_are_missing_or_torn_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "scores.safetensors"
    with pytest.raises(ConfigError, match="no such file"):
        read_scores(str(path), {"a": 2})
    path.write_bytes(b"\x08")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_scores(str(path), {"a": 2})
