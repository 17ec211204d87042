"""The figure, the table and the command of the README show what a file of results says, and refuse a file with gaps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.test_docs_commands import check_command

pytest.importorskip("matplotlib")

from scripts import docs_figures, readme_figure

FACTORS = {"recommended": 1.2, "torch-pruning": 1.4, "optipfair": 1.6}


def cell(method: str, ratio: float, steps: int, seed: int, perplexity: float) -> dict[str, Any]:
    trained = {"batch": 2, "lr": 5e-4} if steps else {}
    return trained | {
        "method": method, "ratio": ratio, "steps": steps, "seed": seed, "perplexity": {"wikitext": perplexity, "ptb": 90.0},
        "seconds": 1.0, "parameters": round(134.5e6 * (1 - 0.8 * ratio)),
    }  # fmt: skip


@pytest.fixture
def result() -> dict[str, Any]:
    """Return made-up results of the form that benchmarks/real_models.py writes."""
    cells = []
    for steps in (0, 200):
        for seed in (0, 1):
            cells.append(cell("dense", 0.0, steps, seed, 40.0))
            for method, factor in FACTORS.items():
                cells += [cell(method, ratio, steps, seed, 40.0 * factor + 100 * ratio + seed) for ratio in (0.2, 0.5)]
    return {"protocol": {"length": 256, "tokens": 32768}, "cells": cells}


SPEED = {
    "ratios": {
        "dense": {"parameters": 1.0, "macs": 1.0, "prefill_speedup": {"1": 1.0}},
        "small": {"parameters": 0.84, "macs": 0.8, "prefill_speedup": {"1": 1.25, "16": 1.2}},
    }
}


def shown(figure: Any) -> list[dict[str, float]]:
    """Return, for each panel, name -> length of its bar."""
    return [
        {label.get_text(): patch.get_width() for label, patch in zip(axes.get_yticklabels(), axes.patches, strict=True)}
        for axes in figure.axes
    ]


def test_every_method_is_a_bar_of_the_mean_of_its_seeds(result: dict[str, Any]) -> None:
    untrained, trained, _ = shown(readme_figure.picture(result, 0.5, SPEED))
    assert list(untrained) == list(trained) == ["dense", "loraprune", "OptiPFair", "Torch-Pruning"]
    assert trained["OptiPFair"] == pytest.approx(64 + 50 + 0.5)
    assert trained["dense"] == 40
    assert shown(readme_figure.picture(result, 0.2, SPEED))[1]["OptiPFair"] == pytest.approx(64 + 20 + 0.5)


def test_size_and_time_are_those_of_the_pruned_model(result: dict[str, Any]) -> None:
    *_, sizes = shown(readme_figure.picture(result, 0.5, SPEED))
    assert sizes == pytest.approx(
        {"parameters": 84, "multiplications": 80, "prefill time, batch 1": 80, "prefill time, batch 16": 100 / 1.2}
    )


def test_another_value_moves_a_bar(result: dict[str, Any]) -> None:
    before = shown(readme_figure.picture(result, 0.5, SPEED))
    result["cells"][-1]["perplexity"]["wikitext"] += 10.0
    assert shown(readme_figure.picture(result, 0.5, SPEED)) != before


def test_a_ratio_that_was_not_run_is_refused(result: dict[str, Any]) -> None:
    with pytest.raises(SystemExit, match=r"no cells of recommended at ratio 0\.3"):
        readme_figure.picture(result, 0.3, SPEED)


@pytest.mark.parametrize("method", ["dense", *FACTORS])
def test_a_method_without_cells_is_refused(result: dict[str, Any], method: str) -> None:
    result["cells"] = [one for one in result["cells"] if one["method"] != method]
    with pytest.raises(SystemExit, match=f"no cells of {method} at"):
        readme_figure.picture(result, 0.5, SPEED)


def test_the_table_has_three_rows_of_the_results(result: dict[str, Any]) -> None:
    assert readme_figure.table(result, 0.2)[2:] == [
        "| dense | 134.5 M | 40.00 ± 0.00 |",
        "| loraprune | 113.0 M | 68.50 ± 0.71 |",
        "| OptiPFair | 113.0 M | 84.50 ± 0.71 |",
    ]


def test_one_seed_has_no_spread(result: dict[str, Any]) -> None:
    result["cells"] = [one for one in result["cells"] if one["seed"] == 0]
    assert readme_figure.table(result, 0.2)[3] == "| loraprune | 113.0 M | 68.00 |"


def test_the_command_is_accepted(result: dict[str, Any], tmp_path: Path, captured: list[Any]) -> None:
    words = readme_figure.command(result, "M", 0.2).split()
    check_command(words, tmp_path)
    with pytest.raises(AssertionError):
        check_command([*words, "--nothing", "1"], tmp_path)


def test_both_kinds_of_page_get_the_figure(
    result: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(docs_figures, "FOLDER", tmp_path)
    (tmp_path / "real_small.json").write_text(json.dumps(result))
    with pytest.raises(SystemExit, match=r"real_small_speed\.json: no such file"):
        readme_figure.main(tmp_path / "real_small.json")
    (tmp_path / "real_small_speed.json").write_text(json.dumps(SPEED))
    readme_figure.main(tmp_path / "real_small.json")
    light, dark = ((tmp_path / f"real-model-{theme}.svg").read_text() for theme in ("light", "dark"))
    assert light != dark
    assert all("OptiPFair" in text for text in (light, dark))
    assert capsys.readouterr().out.startswith("loraprune prune --model small ")
    with pytest.raises(SystemExit, match=r"nothing\.json: no such file"):
        readme_figure.main(tmp_path / "nothing.json")
