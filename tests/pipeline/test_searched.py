"""Whole runs that search for a shape: the folder, its verification, the report and what is printed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from loraprune import cli, pipeline
from loraprune.commands.tables.results import report as show_report
from loraprune.config.training import PruneConfig
from loraprune.plan import Plan
from loraprune.reporting.report import read_report as read
from tests.pipeline.cases import check_loads_anywhere, prune_config, read_report
from tests.pipeline.test_resume import results, resumed, stopped
from tests.samples import save_tiny, write_text

RECIPE: dict[str, Any] = {
    "schedule": "oneshot", "criterion": "wanda", "compensate": True, "end_to_end": 32, "warmup": None, "cooldown": None,
    "interval": None,
}  # fmt: skip


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a tiny model of eight query heads for two key-value heads, and a text."""
    root = tmp_path_factory.mktemp("inputs")
    save_tiny(root / "model", num_attention_heads=8, num_key_value_heads=2)
    write_text(root / "text.txt", 200)
    return root


@pytest.mark.parametrize("shrink", [True, False])
def test_a_searched_run_is_verified_and_tells_every_shape(
    shrink: bool, inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    config = prune_config(inputs, output, ratio=0.25, allocation="searched", shrink=shrink, html=shrink, **RECIPE)
    show_report(pipeline.prune(config))
    check_loads_anywhere(output)
    report = read_report(output)
    assert report["verification"]["masked_vs_sliced"] <= 1e-4
    assert report["ratio_requested"] == 0.25
    assert report["ratio_reached"] == pytest.approx(0.25, abs=0.06)
    shapes = report["shapes"]
    assert {one["kind"] for one in shapes["tried"]} == {"attention", "query"}
    (kept,) = [one for one in shapes["tried"] if one["kept"]]
    plan = Plan.read(output)
    assert bool(plan.parts) == (kept["kind"] == "query")
    heads = len(plan.kept["model.layers.0.self_attn"])
    assert kept["shape"].startswith(f"{kept['kind']} {heads} of ")
    assert read(output).values["shapes"] == shapes
    printed = capsys.readouterr().out
    for words in ("shapes: distance from the dense model's outputs", "rank correlation, masked and end to end: "):
        assert words in printed
    assert shapes["reason"] in printed
    if shrink:
        assert f"of {len(shapes['tried'])} that were tried" in (output / "report.html").read_text(encoding="utf-8")
    # The control: a run without a search has none.
    pipeline.prune(prune_config(inputs, tmp_path / "control", ratio=0.25, allocation="measured", **RECIPE))
    assert "shapes" not in read_report(tmp_path / "control")


@pytest.mark.parametrize("step", [3, 7], ids=["before the removal", "after it"])
def test_a_resumed_search_ends_with_the_same_bytes(step: int, inputs: Path, tmp_path: Path) -> None:
    options = {**RECIPE, "ratio": 0.25, "allocation": "searched"}
    pipeline.prune(prune_config(inputs, tmp_path / "whole", **options))
    stopped(inputs, tmp_path / "out", step, **options)
    resumed(inputs, tmp_path / "out", **options)
    assert results(tmp_path / "out") == results(tmp_path / "whole")
    one, other = ({**read_report(tmp_path / name)["shapes"], "seconds": 0} for name in ("out", "whole"))
    assert one == other


def test_a_real_model_is_searched_with_fewer_layers_too(shared: Path, tmp_path: Path) -> None:
    model = shared / "models" / "llama-stories-260k"
    if not model.is_dir():
        pytest.skip(f"no real model: {model} is missing")
    write_text(tmp_path / "text.txt", 100)
    config = PruneConfig(
        model=str(model), data=str(tmp_path / "text.txt"), output=str(tmp_path / "out"), ratio=0.4, depth=True, steps=2,
        batch=2, length=64, calibration=1024, end_to_end=32, allocation="searched", device="cpu", html=False,
    )  # fmt: skip
    report = pipeline.prune(config)
    assert report.removed
    assert report.removed.shapes
    assert {one["kind"] for one in report.removed.shapes["tried"]} == {"attention", "query", "layers"}
    assert report.removed.ratio_reached == pytest.approx(0.4, abs=0.03)
    check_loads_anywhere(tmp_path / "out")


def test_a_model_with_one_shape_says_so(inputs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        pipeline.prune(prune_config(inputs, tmp_path / "out", ratio=0.25, kinds="ffn", allocation="searched", **RECIPE))
    assert "this model has only one shape of the size that is asked for" in caplog.text
    assert "shapes" not in read_report(tmp_path / "out")


def test_a_command_that_cannot_search_ends_in_one_line(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = ["--model", str(inputs / "model"), "--data", str(inputs / "text.txt"), "--output", str(tmp_path / "out")]
    assert cli.main(["prune", *paths, "--allocation", "searched", "--schedule", "cubic"]) == 2
    assert "--allocation searched --schedule cubic" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
