"""The figure of an untrained head is named as such, and no gain is made of it."""

from __future__ import annotations

from typing import Any

import pytest

from loraprune.commands.tables.results import report as print_report
from loraprune.reporting.card import model_card
from loraprune.reporting.html.summary import cards
from loraprune.reporting.report import Report

UNTRAINED = "untrained head"


def values(*new: str) -> dict[str, Any]:
    return {
        "job": "prune", "model": "m", "data": "d", "task": "sequence-classification", "metric": "accuracy", "trained_whole": list(new),
        "parameters": {"dense": 100, "pruned": 70, "trainable": 5}, "seed": 0, "versions": {},
        "steps": 3, "wall_seconds": 1.0, "total_seconds": 2.0,
        "accuracy": {"dense": 0.532, "pruned": 0.8, "rows": 9, "protocol": {},
                     "standard_error": {"dense": None, "pruned": None}},
        "peak_memory_bytes": 5, "verification": {"masked_vs_sliced": 0.0, "sliced_vs_reloaded": 0.0, "tolerance": 1e-4},
        "saved_as": {"model_type": "bert", "load": "x"},
    }  # fmt: skip


@pytest.mark.parametrize("new", [True, False])
def test_the_table_the_card_and_the_page_say_that_the_head_was_new(
    new: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    found = Report.from_json(values("classifier") if new else values())
    print_report(found)
    table = capsys.readouterr().out
    assert (UNTRAINED in table, "+50.4 %" in table) == (new, not new)
    card = model_card(found, output="o")
    assert (UNTRAINED in card, "loraprune finetune" in card) == (new, new)
    page = list(cards(found))[-1]
    assert (UNTRAINED in " ".join(page.lines), page.figure == "+26.8") == (new, not new)
    assert (page.unit == "points") == (not new)
