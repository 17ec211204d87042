"""Figures of predictions against hand-computed ones, and how far chance moves them."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from loraprune.errors import ConfigError
from loraprune.evaluation.metrics import METRICS, standard_error

pytest.importorskip("sklearn")
PREDICTED, LABELS = np.array([1.0, 1, 0, 0, 1, 0]), np.array([1.0, 0, 0, 0, 1, 1])


@pytest.mark.parametrize(
    ("metric", "value"),
    [("accuracy", 4 / 6), ("f1", 2 / 3), ("matthews_correlation", 1 / 3), ("pearson", 1 / 3), ("spearman", 1 / 3)],
)
def test_every_figure_is_what_its_formula_gives(metric: str, value: float) -> None:
    assert METRICS[metric](PREDICTED, LABELS) == pytest.approx(value)
    assert METRICS[metric](LABELS, LABELS) == pytest.approx(1.0)


@pytest.mark.parametrize("metric", ["matthews_correlation", "pearson", "spearman", "f1"])
def test_predictions_that_never_vary_are_worth_nothing(metric: str) -> None:
    assert METRICS[metric](np.zeros(6), LABELS) == 0.0


def test_the_error_of_an_accuracy_is_the_binomial_one() -> None:
    labels = np.zeros(400)
    predicted = (np.arange(400) % 4 == 0).astype(float)
    found = standard_error("accuracy", predicted, labels)
    assert found == pytest.approx((0.75 * 0.25 / 400) ** 0.5, rel=0.15)
    assert found == standard_error("accuracy", predicted, labels)
    assert standard_error("accuracy", predicted[:1], labels[:1]) is None


def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.metrics", None)
    with pytest.raises(ConfigError, match=r"loraprune\[metrics\]"):
        METRICS["f1"](PREDICTED, LABELS)
    assert METRICS["accuracy"](PREDICTED, LABELS) > 0
