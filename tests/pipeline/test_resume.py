"""A run that is stopped and resumed ends with the bytes of one that was not."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from loraprune import pipeline
from loraprune.config.base import missing_quantiser
from loraprune.config.training import FinetuneConfig
from loraprune.errors import CheckpointError, ConfigError, DataError
from loraprune.reporting.report import Report
from loraprune.training.resume import keeper
from loraprune.training.watch import Watch
from tests.pipeline.cases import SHORT, prune_config, read_report
from tests.samples import write_text

LENGTH = SHORT["steps"]
MIDDLE = 6
"""step after which runs are stopped: something is removed by then, and more is to come"""
CASES: dict[str, dict[str, Any]] = {
    "shrink": {},
    "mask": {"shrink": False, "compensate": True},
    "sparsity": {"sparsity": "2:4"},
    "compensate": {"compensate": True, "teacher": "cache"},
    "accumulate": {"accumulate": 3, "rows": 14, "teacher": "copy"},  # epochs end within the run
    "random": {"criterion": "random", "allocation": "balanced", "history": True},
    "dora": {"adapter": "dora", "compensate": True, "calibration": 512},
    "olora": {"adapter": "olora", "lora_plus": 4.0},
    "no training": {"steps": 0, "rows": 40},
    "4-bit": {"quantize": "4bit"},
    "4-bit, compensate": {"quantize": "4bit", "compensate": True},
}


def absent(name: str) -> str | None:
    """Say which library a case needs that is not installed, None if it can be run."""
    return missing_quantiser(CASES[name].get("quantize", "none"))


class Stopped(Exception):
    """Ends a run as a crash would."""


def stop_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a run crash when its checkpoint of a step is on the disk."""
    real = keeper.finish_checkpoint

    def finish(folder: Path, about: Mapping[str, Any]) -> Path:
        written = real(folder, about)
        if about["step"] == step:
            raise Stopped
        return written

    monkeypatch.setattr(keeper, "finish_checkpoint", finish)


def results(folder: Path) -> dict[str, bytes]:
    return {
        name: (folder / name).read_bytes()
        for name in ("model.safetensors", "plan.json", "scores_history.safetensors")
        if (folder / name).exists()
    }


def stopped(inputs: Path, output: Path, step: int, **changes: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stop_after(step, patch)
        with pytest.raises(Stopped):
            pipeline.prune(prune_config(inputs, output, save=1, **changes))


def resumed(inputs: Path, output: Path, **changes: Any) -> Report:
    return pipeline.prune(prune_config(inputs, output, save=1, resume=True, **changes))


@pytest.fixture(scope="module")
def uninterrupted(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the folder of every case's run that nothing stopped."""
    root = tmp_path_factory.mktemp("uninterrupted")
    present = [name for name in CASES if absent(name) is None]
    for name in present:
        pipeline.prune(prune_config(inputs, root / name, **CASES[name]))
    return {name: root / name for name in present}


@pytest.mark.parametrize("name", CASES)
def test_a_resumed_run_ends_with_the_same_bytes(
    name: str, inputs: Path, uninterrupted: dict[str, Path], tmp_path: Path
) -> None:
    if reason := absent(name):
        pytest.skip(reason)
    stopped(inputs, tmp_path / "out", MIDDLE, **CASES[name])
    assert [path.name for path in tmp_path.iterdir()] == ["out.partial"]
    resumed(inputs, tmp_path / "out", **CASES[name])
    assert results(tmp_path / "out") == results(uninterrupted[name])
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    one, other = (read_report(folder) for folder in (tmp_path / "out", uninterrupted[name]))
    for key in ("curve", "removals", "steps", "perplexity"):
        assert one[key] == other[key], key


def test_the_same_seed_gives_the_same_bytes_and_another_one_others(inputs: Path, pruned: Path, tmp_path: Path) -> None:
    pipeline.prune(prune_config(inputs, tmp_path / "same"))
    pipeline.prune(prune_config(inputs, tmp_path / "other", seed=1))
    assert results(tmp_path / "same") == results(pruned)
    assert results(tmp_path / "other") != results(pruned)


@pytest.fixture(scope="module")
def impatient(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return options of a run that learns what it is evaluated by the less the longer it trains: it ends after step 6 of 10."""
    path = tmp_path_factory.mktemp("digits") / "digits.txt"
    path.write_text("".join("0123456789ABCDEFGHIJK"[(n * n * 7 + n // 3) % 21] for n in range(2000)), encoding="utf-8")
    return {"eval": str(path), "eval_every": 1, "patience": 2, "cooldown": 0.6, "lr": 1e-2}


@pytest.fixture(scope="module")
def patient(inputs: Path, impatient: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of that run when nothing stops it."""
    output = tmp_path_factory.mktemp("patient") / "out"
    pipeline.prune(prune_config(inputs, output, **impatient))
    return output


@pytest.mark.parametrize("step", [3, 5, 6])
def test_patience_survives(step: int, inputs: Path, impatient: dict[str, Any], patient: Path, tmp_path: Path) -> None:
    stopped(inputs, tmp_path / "out", step, **impatient)
    resumed(inputs, tmp_path / "out", **impatient)
    one, other = (read_report(folder) for folder in (tmp_path / "out", patient))
    assert (one["kept_step"], one["steps"]) == (4, 6)
    for key in ("evaluations", "kept_step", "steps", "curve", "perplexity"):
        assert one[key] == other[key], key
    assert results(tmp_path / "out") == results(patient)


def test_a_run_that_forgets_what_it_measured_goes_on_otherwise(
    inputs: Path, impatient: dict[str, Any], patient: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(inputs, tmp_path / "out", 5, **impatient)
    monkeypatch.setattr(Watch, "load_state_dict", lambda self, state: None)
    resumed(inputs, tmp_path / "out", **impatient)
    assert read_report(tmp_path / "out")["evaluations"] != read_report(patient)["evaluations"]


@pytest.mark.parametrize("lost", ["random", "optimizer"])
def test_a_run_that_forgets_something_ends_with_other_bytes(
    lost: str, inputs: Path, pruned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(inputs, tmp_path / "out", 5)
    if lost == "random":
        monkeypatch.setattr(keeper, "set_random_state", lambda state: None)
    else:
        monkeypatch.setattr("accelerate.optimizer.AcceleratedOptimizer.load_state_dict", lambda self, state: None)
    resumed(inputs, tmp_path / "out")
    assert results(tmp_path / "out") != results(pruned)


@pytest.mark.parametrize("step", [LENGTH - 1, LENGTH])
def test_a_run_may_be_stopped_at_its_very_end(step: int, inputs: Path, pruned: Path, tmp_path: Path) -> None:
    stopped(inputs, tmp_path / "out", step)
    resumed(inputs, tmp_path / "out")
    assert results(tmp_path / "out") == results(pruned)


def test_a_finetuning_run_is_resumed_too(inputs: Path, tmp_path: Path) -> None:
    paths = {"model": str(inputs / "model"), "data": str(inputs / "text.txt")}
    pipeline.finetune(FinetuneConfig(output=str(tmp_path / "whole"), **paths | SHORT))
    with pytest.MonkeyPatch.context() as patch:
        stop_after(4, patch)
        with pytest.raises(Stopped):
            pipeline.finetune(FinetuneConfig(output=str(tmp_path / "out"), save=2, **paths | SHORT))
    pipeline.finetune(FinetuneConfig(output=str(tmp_path / "out"), resume=True, **paths | SHORT))
    assert results(tmp_path / "out") == results(tmp_path / "whole")


def test_a_torn_checkpoint_is_named_and_the_one_before_taken(
    inputs: Path, pruned: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stopped(inputs, tmp_path / "out", 6)
    torn = tmp_path / "out.partial" / "step-00000006"
    state = torn / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-1])
    caplog.set_level(logging.INFO)
    resumed(inputs, tmp_path / "out")
    assert f"checkpoint {torn} is skipped: state.safetensors is torn" in caplog.text
    assert "continuing from" in caplog.text
    assert "step-00000005" in caplog.text
    assert results(tmp_path / "out") == results(pruned)


def test_without_a_checkpoint_a_run_starts_from_the_beginning(
    inputs: Path, pruned: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    resumed(inputs, tmp_path / "out")
    assert "no complete checkpoint" in caplog.text
    assert results(tmp_path / "out") == results(pruned)


@pytest.fixture(scope="module")
def unfinished(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the checkpoints of a stopped run."""
    folder = tmp_path_factory.mktemp("unfinished")
    stopped(inputs, folder / "out", 3)
    return folder


def test_other_options_are_refused_by_name(inputs: Path, unfinished: Path) -> None:
    before = sorted(unfinished.rglob("*"))
    with pytest.raises(ConfigError) as error:
        resumed(inputs, unfinished / "out", lr=0.5, shrink=False)
    assert "--lr 0.5 (was 0.001), --shrink False (was True)" in str(error.value)
    assert sorted(unfinished.rglob("*")) == before


def test_other_data_and_another_model_are_refused(inputs: Path, unfinished: Path) -> None:
    before = sorted(unfinished.rglob("*"))
    text = inputs / "text.txt"
    former = text.read_text(encoding="utf-8")
    try:
        write_text(text, 200, seed=5)
        with pytest.raises(DataError, match="rows to train on are not those"):
            resumed(inputs, unfinished / "out")
    finally:
        text.write_text(former, encoding="utf-8")
    weights = inputs / "model" / "model.safetensors"
    data = weights.read_bytes()
    try:
        weights.write_bytes(data[:-4] + b"\x00\x00\x00\x40")
        with pytest.raises(CheckpointError, match="its weights are not those"):
            resumed(inputs, unfinished / "out")
    finally:
        weights.write_bytes(data)
    assert sorted(unfinished.rglob("*")) == before


def test_checkpoints_are_not_lost_to_a_run_that_starts_anew_by_mistake(inputs: Path, unfinished: Path) -> None:
    before = sorted(unfinished.rglob("*"))
    with pytest.raises(CheckpointError, match="--resume to continue"):
        pipeline.prune(prune_config(inputs, unfinished / "out"))
    with pytest.raises(DataError):
        pipeline.prune(prune_config(inputs, unfinished / "out", overwrite=True, data=str(unfinished / "missing.txt")))
    assert sorted(unfinished.rglob("*")) == before
