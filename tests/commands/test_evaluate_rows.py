"""`evaluate --rows` bounds what is measured, and says how many rows that is before it begins."""

from __future__ import annotations

from pathlib import Path

import pytest

from loraprune.commands.evaluate import evaluate
from loraprune.config.commands import EvaluateConfig
from tests.cli.cases import refused
from tests.samples import save_tiny, write_text


def test_so_many_rows_are_measured_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, text = str(save_tiny(tmp_path / "m")), str(write_text(tmp_path / "t.txt"))
    found = {}
    for rows in (3, None):
        with caplog.at_level("INFO", logger="loraprune"):
            options = EvaluateConfig(model=model, data=text, length=32, rows=rows, device="cpu")
            found[rows] = evaluate(options).values["models"][model]["protocol"]["rows"]
    assert found[3] == 3 < found[None]
    assert f"evaluating on 3 rows of {text}" in caplog.text


def test_no_rows_are_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    refused(["evaluate", "--model", "demo", "--data", "stdlib", "--rows", "0"], capfd, "--rows 0")
