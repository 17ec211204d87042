"""A comparison runs what is not finished, survives what fails, and leaves its table and plots."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from loraprune import cli
from loraprune.commands.compare import plots, run
from loraprune.commands.compare.grid import CELLS, Cell
from loraprune.commands.compare.run import KEPT, compare
from loraprune.commands.compare.settings import CompareConfig
from loraprune.commands.compare.summary import PENDING
from loraprune.config.training import as_dict
from loraprune.errors import ConfigError
from loraprune.reporting import plotting
from tests.commands.compare.conftest import Make

GRID = {"criterion": ["magnitude", "lora"], "seed": [0, 1]}


ENDS = {
    "well": "",
    "wrong": "sys.exit('loraprune: error: --ratio: too much')",
    "killed": "os.kill(os.getpid(), signal.SIGKILL)",
    "slow": "time.sleep(60)",
}
ends: dict[str, str] = {}
"""cell -> how its process ends, if not well"""


def made_up(cell: Cell) -> str:
    """Return a program that does what a cell's process does, at once and without a model."""
    report = {
        "job": cell.job, "ratio_reached": 0.5, "parameters": {"dense": 100, "pruned": 60}, "steps": 2,
        "wall_seconds": 1.0, "total_seconds": 2.0, "peak_memory_bytes": 1, "versions": {}, "units": {},
        "perplexity": {"dense": 5.0, "pruned": 6.0 + cell.config.seed, "protocol": {}},
    }  # fmt: skip
    return f"""
import json, os, pathlib, signal, sys, time
folder = pathlib.Path({cell.config.output!r})
folder.mkdir()
(folder / "model.safetensors").write_text("weights")
(folder / "checkpoints").mkdir()
{ENDS[ends.get(cell.name, "well")]}
(folder / "report.json").write_text({json.dumps(report)!r})
"""


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace the processes of cells by made-up ones, and record which are started."""
    names: list[str] = []

    def command(cell: Cell, config: Path) -> list[str]:
        assert yaml.safe_load(config.read_text()) == as_dict(cell.config)
        names.append(cell.name)
        return [sys.executable, "-c", made_up(cell)]

    monkeypatch.setattr(run, "command", command)
    monkeypatch.setattr(run, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(plots, "draw", lambda *_: None)
    ends.clear()
    return names


def go(options: CompareConfig) -> dict[str, Any]:
    return dict(compare(options).values)


def test_a_finished_cell_is_not_run_again(make: Make, started: list[str]) -> None:
    options = make(grid=GRID, baselines=["finetune"])
    first = go(options)
    assert len(started) == 6
    assert go(options) == first
    assert len(started) == 6


def test_a_deleted_cell_and_other_options_are_run(make: Make, started: list[str]) -> None:
    options = make(grid=GRID)
    go(options)
    shutil.rmtree(Path(options.output) / CELLS / options.expand()[0][2].key)
    started.clear()
    go(options)
    assert started == ["lora, seed 0"]
    started.clear()
    go(make(grid=GRID | {"seed": [1, 2]}))
    assert started == ["magnitude, seed 2", "lora, seed 2"]
    started.clear()
    go(make(grid=GRID, lr=1e-3))
    assert len(started) == 4
    started.clear()
    go(make(grid=GRID, overwrite=True))
    assert len(started) == 4


@pytest.mark.parametrize("jobs", [1, 3])
def test_a_failing_cell_is_reported_and_the_others_finish(jobs: int, make: Make, started: list[str]) -> None:
    ends.update({"magnitude, seed 0": "wrong", "lora, seed 0": "killed"})
    options = make(grid=GRID, jobs=jobs)
    values = go(options)
    errors = [cell.get("error") for cell in values["cells"]]
    assert errors == ["--ratio: too much", None, "killed by SIGKILL, perhaps for lack of memory", None]
    assert values["recipes"]["lora"]["failed"] == 1
    assert "--ratio: too much" in (Path(options.output) / "table.md").read_text()
    ends.clear()
    started.clear()
    assert all("error" not in cell for cell in go(options)["cells"])
    assert sorted(started) == ["lora, seed 0", "magnitude, seed 0"]


def test_weights_are_dropped_unless_kept(make: Make, started: list[str]) -> None:
    for keep in (False, True):
        options = make(grid={"seed": [int(keep)]}, keep=keep)
        go(options)
        folder = Path(options.output) / CELLS / options.expand()[0][0].key
        assert {path.name for path in folder.iterdir()} - set(KEPT) == (
            {"model.safetensors", "checkpoints"} if keep else set()
        )


def test_two_recipes_with_the_same_options_are_one_run(make: Make, started: list[str]) -> None:
    values = go(make(runs={"plain": {}, "explicit": {"criterion": "auto"}}))
    assert len(started) == 1
    assert [cell["perplexity"]["pruned"] for cell in values["cells"]] == [6.0, 6.0]


def test_an_interrupt_ends_the_running_cell_and_keeps_the_finished(
    make: Make, started: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    ends["lora, seed 0"] = "slow"
    options = make(grid=GRID)

    def interrupt() -> None:
        while "lora, seed 0" not in started:
            time.sleep(0.01)
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGINT)

    # A shell starts what it runs in the background with the signal ignored.
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=interrupt, daemon=True).start()
    arguments = ["compare", "--grid", json.dumps(GRID)]
    for name in ("model", "data", "output", "steps", "batch", "length", "device"):
        arguments += [f"--{name}", str(getattr(options, name))]
    began = time.perf_counter()
    try:
        assert cli.main(arguments) == 130
    finally:
        signal.signal(signal.SIGINT, former)
    assert time.perf_counter() - began < 30
    assert "finished cells are kept" in capsys.readouterr().err
    values = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [cell.get("error") for cell in values["cells"]] == [None, None, PENDING, PENDING]
    ends.clear()
    started.clear()
    go(options)
    assert started == ["lora, seed 0", "lora, seed 1"]


def test_unknown_criteria_are_all_refused_before_anything_runs(make: Make, started: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'magnitud' \(did you mean 'magnitude'\?\).*'gat'"):
        go(make(grid={"criterion": ["magnitud", "gat"]}))
    assert started == []
    assert not (tmp_path / "out").exists()


def test_without_matplotlib_the_results_are_there_and_the_extra_is_named(
    make: Make, started: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(run, "run_cells", lambda *_, **__: None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(plotting.MissingMatplotlib, match=r"loraprune\[report\]"):
        plots.new_figure(1.0, 1.0)
    monkeypatch.setattr(plots, "draw", lambda *_: plots.new_figure(1.0, 1.0))
    options = make(grid=GRID)
    compare(options)
    assert "loraprune[report]" in caplog.text
    assert (Path(options.output) / "results.json").is_file()


@pytest.mark.slow
def test_two_real_cells_from_end_to_end(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    options = make(grid={"criterion": ["magnitude", "lora"]}, reference="lora", round=1, history=True)
    arguments = [
        "compare",
        "--grid",
        json.dumps(options.grid),
        "--reference",
        "lora",
        "--round",
        "1",
        "--history",
        "true",
    ]
    for name in ("model", "data", "output", "steps", "batch", "length", "device"):
        arguments += [f"--{name}", str(getattr(options, name))]
    assert cli.main([*arguments, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    output = Path(options.output)
    assert values == json.loads((output / "results.json").read_text())
    assert [cell.get("error") for cell in values["cells"]] == [None, None]
    for cell in values["cells"]:
        assert cell["ratio_reached"] == pytest.approx(0.5, abs=0.02)
        assert cell["machine"]["cores"] > 0
        assert "torch" in cell["versions"]
        assert {path.name for path in (output / CELLS / cell["key"]).iterdir()} == set(KEPT) - {"report.html"}
    for name in ("perplexity", "widths", "agreement", "agreement_by_step"):
        assert (output / "plots" / f"{name}.png").stat().st_size > 10_000
        assert "<svg" in (output / "plots" / f"{name}.svg").read_text()
    assert cli.main(arguments) == 0
    assert "magnitude" in capsys.readouterr().out
