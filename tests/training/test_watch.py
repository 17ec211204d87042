"""Looks at held-out text on the way, the early end, and what dashboards are told."""

from __future__ import annotations

import json
import logging
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import TrainerControl, TrainerState, TrainingArguments

from loraprune import cli, pipeline
from loraprune.config import base
from loraprune.config.training import FinetuneConfig
from loraprune.errors import ConfigError
from loraprune.evaluation.measurement import PERPLEXITY, Measured
from loraprune.evaluation.perplexity import Perplexity
from loraprune.evaluation.tasks import causal_lm
from loraprune.training.watch import TrainingBar, Watch
from tests.pipeline.cases import SHORT, prune_config, read_report
from tests.samples import save_inputs

STEPS = 12


def figure(metric: str, value: float) -> Measured:
    return Measured(metric, value, "lower" if metric == PERPLEXITY else "higher", None, {"rows": 1}, {})


def run_through(
    values: list[float], *, patience: int | None, done_from: int = 0, metric: str = PERPLEXITY
) -> tuple[Watch, nn.Linear, int]:
    """Play a run of STEPS steps, judged at each: the weight is the step; return the watch, the model and the last step."""
    model, seen = nn.Linear(1, 1, bias=False), iter(values)

    def evaluate(_: nn.Module) -> Measured:
        return figure(metric, next(seen))

    state = TrainerState(max_steps=STEPS)
    arguments = TrainingArguments(output_dir="unused", use_cpu=True, report_to=[])
    watch = Watch(evaluate, every=1, patience=patience, ratio=lambda: (0.5, state.global_step >= done_from))
    control = TrainerControl()
    while state.global_step < STEPS and not control.should_training_stop:
        state.global_step += 1
        with torch.no_grad():
            model.weight.fill_(float(state.global_step))
        watch.on_step_end(arguments, state, control, model=model)
    return watch, model, state.global_step


@pytest.mark.parametrize(
    ("trains", "words"), [(True, "step 1 of 2"), (False, "scoring without training, batch 1 of 2")]
)
def test_lines_of_progress_name_steps_only_where_there_are_any(
    trains: bool, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    bar = TrainingBar(lambda: 0.5, trains=trains)
    arguments = TrainingArguments(output_dir="unused", use_cpu=True, report_to=[])
    bar.on_step_end(arguments, TrainerState(global_step=1, max_steps=2), TrainerControl())
    assert caplog.messages == [f"{words}  ratio 0.500"]


def test_training_ends_when_patience_does_and_the_best_adapters_come_back() -> None:
    watch, model, last = run_through([5.0, 3.0, 4.0, 3.5, 1.0], patience=2)
    assert (last, watch.kept_step, model.weight.item()) == (4, 2, 2.0)
    assert [entry["step"] for entry in watch.history] == [1, 2, 3, 4]


def test_of_an_accuracy_the_highest_is_the_best() -> None:
    watch, model, last = run_through([0.5, 0.7, 0.6, 0.7, 0.9], patience=2, metric="accuracy")
    assert (last, watch.kept_step, model.weight.item()) == (4, 2, 2.0)
    watch, _, last = run_through([0.5, 0.7, 0.6, 0.7, 0.9], patience=2)  # the same numbers as perplexities
    assert (last, watch.kept_step) == (3, 1)


def test_what_is_judged_before_the_target_counts_for_nothing() -> None:
    nlls = [1.0, 9.0, 9.0, 9.0, 8.0, 7.0, 7.5, 7.6, 0.0]
    watch, model, last = run_through(nlls, patience=2, done_from=4)
    assert (last, watch.kept_step, model.weight.item()) == (8, 6, 6.0)


def test_a_run_that_gets_better_to_the_end_is_not_cut_short() -> None:
    watch, model, last = run_through([float(STEPS - step) for step in range(STEPS)], patience=1)
    assert (last, watch.kept_step, model.weight.item()) == (STEPS, STEPS, float(STEPS))


def test_the_best_comes_back_at_the_last_step_too() -> None:
    watch, model, last = run_through([9.0] * 9 + [2.0, 3.0, 4.0], patience=9)
    assert (last, watch.kept_step, model.weight.item()) == (STEPS, 10, 10.0)


def test_without_patience_nothing_is_kept_or_ended() -> None:
    watch, model, last = run_through([1.0] + [9.0] * (STEPS - 1), patience=None)
    assert (last, watch.kept_step, model.weight.item()) == (STEPS, None, float(STEPS))


def get_worse(monkeypatch: pytest.MonkeyPatch, *, from_look: int = 0) -> None:
    """Let every look find a loss that is 1 higher than the last one did; the first look is at the dense model."""
    real, looks = causal_lm.perplexity, iter(range(from_look, 100))

    def worse_and_worse(*arguments: Any, **named: Any) -> Perplexity:
        measured = real(*arguments, **named)
        nll = measured.nll + next(looks)
        return replace(measured, value=math.exp(nll), nll=nll)

    monkeypatch.setattr(causal_lm, "perplexity", worse_and_worse)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.mark.parametrize("shrink", [True, False])
def test_a_pruned_run_that_ends_early_has_its_ratio_and_its_best_adapters(
    inputs: Path, tmp_path: Path, shrink: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    get_worse(monkeypatch)
    config = prune_config(
        inputs, tmp_path / "out", steps=20, cooldown=0.6, eval_every=2, patience=2, shrink=shrink, html=False
    )
    pipeline.prune(config)
    report = read_report(tmp_path / "out")
    reached = next(removal["step"] for removal in report["removals"] if removal["ratio"] == report["ratio_reached"])
    assert report["ratio_reached"] == pytest.approx(0.5, abs=0.06)
    assert report["kept_step"] == 8 >= reached
    assert report["steps"] == 12 < 20
    assert [entry["step"] for entry in report["evaluations"]] == [2, 4, 6, 8, 10, 12]
    kept = next(entry for entry in report["evaluations"] if entry["step"] == report["kept_step"])
    last = report["evaluations"][-1]
    # The model in the folder is the one of the kept step (the fourth look), not the last one's (the sixth).
    saved = report["perplexity"]["nll"]["pruned"] - 7
    assert saved == pytest.approx(kept["nll"] - 4, abs=1e-5)
    assert abs(saved - (last["nll"] - 6)) > 1e-4


def test_looks_do_not_change_the_model(inputs: Path, tmp_path: Path) -> None:
    for name, every in (("without", None), ("with", 3)):
        pipeline.prune(prune_config(inputs, tmp_path / name, criterion="wanda", eval_every=every, html=False))
    assert (tmp_path / "with" / "model.safetensors").read_bytes() == (
        tmp_path / "without" / "model.safetensors"
    ).read_bytes()
    evaluations = read_report(tmp_path / "with")["evaluations"]
    assert [entry["step"] for entry in evaluations] == [3, 6, 9, 10]
    assert evaluations[-1]["nll"] == pytest.approx(
        read_report(tmp_path / "with")["perplexity"]["nll"]["pruned"], abs=1e-5
    )


def test_dashboards_hear_loss_ratio_and_perplexity_and_stdout_is_the_result(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    arguments = [
        "prune",
        "--model",
        str(inputs / "model"),
        "--data",
        str(inputs / "text.txt"),
        "--output",
        str(tmp_path / "out"),
    ]
    arguments += ["--log", "tensorboard", "--eval-every", "3", "--html", "false", "--calibration", "512", "--json"]
    assert cli.main([*arguments, *(word for name, value in SHORT.items() for word in (f"--{name}", str(value)))]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == SHORT["steps"]
    events = EventAccumulator(str(tmp_path / "out-logs"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {"train/loss", "train/ratio", "eval/perplexity", "eval/loss"} <= tags
    assert len(events.Scalars("train/loss")) == SHORT["steps"]  # a look does not swallow the Trainer's own log
    ratios = [event.value for event in events.Scalars("train/ratio")]
    assert ratios == sorted(ratios)
    assert ratios[-1] == pytest.approx(read_report(tmp_path / "out")["ratio_reached"])


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of what the dashboards themselves import
@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_other_dashboards_hear_the_same_without_a_network(
    name: str, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in (("WANDB_MODE", "offline"), ("WANDB_DIR", str(tmp_path)), ("TRACKIO_DIR", str(tmp_path))):
        monkeypatch.setenv(variable, value)
    dashboard, heard = pytest.importorskip(name), dict[str, float]()
    send = dashboard.Run.log

    def listen(run: object, *arguments: Any, **named: Any) -> None:
        heard.update(arguments[0] if arguments else named["metrics"])
        send(run, *arguments, **named)

    monkeypatch.setattr(dashboard.Run, "log", listen)
    pipeline.prune(prune_config(inputs, tmp_path / "out", steps=2, log=name, eval_every=1, html=False))
    if name == "wandb":  # which the Trainer leaves open
        dashboard.finish()
    report = read_report(tmp_path / "out")
    assert heard["train/ratio"] == pytest.approx(report["ratio_reached"])
    assert heard["eval/perplexity"] == pytest.approx(report["perplexity"]["pruned"], rel=1e-4)
    assert {"train/loss", "train/learning_rate", "eval/loss"} <= set(heard)
    assert [path for path in tmp_path.rglob("*") if path.suffix in (".wandb", ".db")]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"log": "tensorbord"}, "did you mean 'tensorboard'"), ({"log": "tensorboard,"}, "one of tensorboard"),
        ({"eval_every": 0}, "--eval-every 0"), ({"patience": 0, "eval_every": 1}, "--patience 0"),
        ({"patience": 2}, "give --eval-every too"),
    ],
)  # fmt: skip
def test_wrong_options_are_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        FinetuneConfig(model="m", data="d", output=str(tmp_path / "out"), **changes)


def test_a_dashboard_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(ConfigError, match="--log wandb: wandb is not installed; pip install wandb"):
        FinetuneConfig(model="m", data="d", output=str(tmp_path / "out"), log="wandb")
    assert "wandb" not in sys.modules
