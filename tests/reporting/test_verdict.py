"""A run is called usable only if it is: the borders, both directions of a metric, and what cannot be compared."""

from __future__ import annotations

import math

import pytest

from loraprune.reporting.report import Report
from loraprune.reporting.verdict import (
    RUINED_GAP,
    RUINED_SHARE,
    USABLE_GAP,
    USABLE_SHARE,
    find_verdict,
)
from tests.reporting.test_new_head import values

NEAR = 1e-9
MIDDLE = "train longer or cut less"


def word(metric: str, dense: float, pruned: float, *, job: str = "prune", new_head: bool = False) -> str:
    return find_verdict(job, metric, dense, pruned, new_head=new_head).word


@pytest.mark.parametrize(
    ("gap", "expected"),
    [
        (-0.5, "usable"), (0.0, "usable"), (USABLE_GAP - NEAR, "usable"), (USABLE_GAP + NEAR, MIDDLE), (RUINED_GAP - NEAR, MIDDLE),
        (RUINED_GAP + NEAR, "ruined"), (math.log(16), "ruined"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("dense", [1.5, 10.72, 5000.0])
def test_a_perplexity_is_compared_by_the_gap_of_the_loss(gap: float, expected: str, dense: float) -> None:
    assert word("perplexity", dense, dense * math.exp(gap)) == expected


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (1.1, "usable"), (USABLE_SHARE + NEAR, "usable"), (USABLE_SHARE - NEAR, MIDDLE), (RUINED_SHARE + NEAR, MIDDLE),
        (RUINED_SHARE - NEAR, "ruined"), (0.0, "ruined"), (-0.2, "ruined"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("metric", ["accuracy", "f1", "matthews_correlation"])
def test_a_score_is_compared_by_the_share_that_is_kept(share: float, expected: str, metric: str) -> None:
    assert word(metric, 0.6, 0.6 * share) == expected


def test_a_low_perplexity_and_a_high_accuracy_are_good() -> None:
    assert (word("perplexity", 10.0, 2.0), word("accuracy", 0.2, 0.9)) == ("usable", "usable")
    assert (word("perplexity", 2.0, 10.0), word("accuracy", 0.9, 0.2)) == ("ruined", "ruined")


def test_plain_fine_tuning_is_not_told_to_cut_less() -> None:
    assert word("perplexity", 10.0, 15.0, job="finetune") == "tune differently"
    assert word("accuracy", 0.9, 0.8, job="finetune") == "tune differently"


def test_an_untrained_head_shows_failure_but_no_success() -> None:
    better, worse = (find_verdict("prune", "accuracy", 0.53, value, new_head=True) for value in (0.9, 0.53))
    assert (better.word, worse.word) == ("not comparable", "ruined")
    assert all("untrained head" in each.reason for each in (better, worse))
    assert word("perplexity", 30000.0, 40.0, new_head=True) == "not comparable"
    assert word("perplexity", 30000.0, 30001.0, new_head=True) == "ruined"


def test_a_dense_score_of_zero_cannot_be_compared_with() -> None:
    assert word("matthews_correlation", 0.0, 0.0) == "not comparable"
    assert word("pearson", -0.1, 0.4) == "not comparable"


def test_the_reason_has_the_figures_and_the_threshold() -> None:
    assert find_verdict("prune", "perplexity", 10.72, 171.5, new_head=False).reason == (
        "perplexity 171.5, 16 times the dense model's 10.72; above 2.72 times a model is ruined"
    )
    assert find_verdict("prune", "accuracy", 0.9, 0.8, new_head=False).reason == (
        "accuracy 0.800, 88.9% of the dense model's 0.900; usable from 95% on"
    )


@pytest.mark.parametrize(("new", "expected"), [((), "usable"), (("classifier",), "not comparable")])
def test_the_report_holds_the_verdict_and_older_reports_get_one(new: tuple[str, ...], expected: str) -> None:
    report = Report.from_json(values(*new))  # a report of before: without a verdict
    assert report.verdict.word == expected
    assert report.values["verdict"] == {"word": expected, "reason": report.verdict.reason}
    assert Report.from_json(report.values).verdict == report.verdict
