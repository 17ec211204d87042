"""An option that has no effect beside the others is refused or reported, and never taken in silence."""

from __future__ import annotations

import logging
from dataclasses import fields
from typing import Any

import pytest

import loraprune
from loraprune import LoRAPruneCallback, cli
from loraprune.commands.verbs import COMMANDS
from loraprune.config.base import Options
from loraprune.config.commands import BenchmarkConfig, PlanConfig
from loraprune.config.export import ExportConfig
from loraprune.config.pruning import LoRAPruneConfig
from loraprune.config.training import FinetuneConfig, PruneConfig
from loraprune.errors import ConfigError

NAMES = {"model": "demo", "data": "stdlib", "output": "/tmp/none/out", "models": "[demo, other]"}
RUN = {name: NAMES[name] for name in ("model", "data", "output")}
NOTHING = {"compensate": False, "end_to_end": 0, "allocation": "uniform"}


def flags(command: str, options: dict[str, Any]) -> list[str]:
    needed = {name: NAMES[name] for name in COMMANDS[command].required}
    return [command, *(part for name, value in (needed | options).items() for part in (f"--{name}", str(value)))]


@pytest.mark.parametrize(
    ("kind", "option", "beside", "control"),
    [
        (LoRAPruneConfig, {"interval": 5}, {}, {"schedule": "cubic"}),
        (LoRAPruneConfig, {"decay": 0.5}, {"scores": "s.safetensors"}, {}),
        (LoRAPruneConfig, {"history": True}, {"scores": "s.safetensors"}, {}),
        (LoRAPruneConfig, {"round": 16}, {"heads": 4, "ffn": 64}, {"heads": 4, "ffn_ratio": 0.2}),
        (LoRAPruneConfig, {"allocation": "measured"}, {"ffn": 64}, {"ratio": 0.2}),
        (LoRAPruneConfig, {"calibration": 999}, NOTHING, {"compensate": False}),
        (LoRAPruneConfig, {"calibration": 999}, {"sparsity": "2:4"}, {"end_to_end": 0}),
        (PruneConfig, {"epochs": 3.0}, RUN | {"steps": 20}, RUN),
        (FinetuneConfig, {"epochs": 3.0}, RUN | {"steps": 20}, RUN),
        (PruneConfig, {"lr": 1.0}, RUN | {"steps": 0}, RUN | {"steps": 1}),
        (PlanConfig, {"sharding": "fsdp"}, {}, {"gpus": 2}),
        (BenchmarkConfig, {"task": "masked-lm"}, {"model": "demo"}, None),
        (ExportConfig, {"task": "masked-lm"}, {"model": "demo", "output": "/tmp/none/out"},
         {"model": "demo", "output": "/tmp/none/out", "format": "onnx", "quantization": "int8", "data": "a.csv"}),
    ],
)  # fmt: skip
def test_what_has_no_effect_is_reported(
    kind: type[Options], option: dict[str, Any], beside: dict[str, Any], control: dict[str, Any] | None
) -> None:
    ((name, value),) = option.items()
    shown = str(value).lower() if isinstance(value, bool) else value
    assert [line.partition(": ")[0] for line in kind(**beside, **option).idle()] == [f"--{name} {shown} has no effect"]
    assert kind(**beside).idle() == []
    if control is not None:
        assert kind(**control, **option).idle() == []


def test_the_defaults_of_every_command_have_an_effect() -> None:
    for command in COMMANDS.values():
        if "model" in {one.name for one in fields(command.options)} and command.options.__name__ not in {
            "EvaluateConfig",
            "PushConfig",
            "ReportConfig",
        }:
            needed = {name: NAMES[name] for name in command.required}
            assert command.options(**needed).idle() == []


def test_it_is_said_before_the_command_begins(captured: list[Any], caplog: pytest.LogCaptureFixture) -> None:
    assert cli.main(flags("prune", {"steps": 20, "epochs": 3, "interval": 5})) == 0
    assert [record.message for record in caplog.records] == [
        "--epochs 3.0 has no effect: --steps 20 sets the length of the run",
        "--interval 5 has no effect: --schedule oneshot removes all units at once",
    ]
    assert len(captured) == 1
    caplog.clear()
    assert cli.main(flags("prune", {"steps": 20, "interval": 5, "schedule": "cubic"})) == 0
    assert not caplog.records


def test_functions_and_the_callback_say_it_too(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        loraprune.plan("demo", ratio=0.2, sharding="fsdp")
        LoRAPruneCallback(LoRAPruneConfig(interval=5))
    first, second = (record.message for record in caplog.records)
    assert first == "sharding='fsdp' has no effect: a single GPU shares nothing; give gpus=2 or more"
    assert second.startswith("interval=5 has no effect")


@pytest.mark.parametrize(
    ("command", "options", "words", "control"),
    [
        ("prune", {"distill": 0.7}, "--distill 0.7", {"distill": 0.7, "teacher": "copy"}),
        ("evaluate", {"data": "stdlib", "limit": 5}, "--limit 5", {"tasks": "piqa", "limit": 5}),
        ("evaluate", {"data": "stdlib", "shots": 2}, "--shots 2", {"tasks": "piqa", "shots": 2}),
        ("evaluate", {"data": "stdlib", "task_data": "t"}, "--task-data t", {"tasks": "piqa", "task_data": "t"}),
        ("evaluate", {"tasks": "piqa", "rows": 3}, "--rows 3", {"data": "stdlib", "rows": 3}),
        ("evaluate", {"tasks": "piqa", "columns": "text=a"}, "--columns text=a", {"data": "stdlib", "columns": "text=a"}),
        ("compare-models", {"columns": "text=a"}, "--columns text=a", {"data": "stdlib", "columns": "text=a"}),
        ("export", {"data": "a.csv"}, "--data a.csv", {"data": "a.csv", "format": "onnx", "quantization": "int8"}),
        ("export", {"data": "a.csv", "format": "onnx"}, "--data a.csv", {"format": "onnx"}),
        ("export", {"tensor_parallel": 2, "format": "gguf"}, "--tensor-parallel 2", {"tensor_parallel": 2, "format": "safetensors"}),
        ("prune", {"ratio": 0.3, "parameters": "3M"}, "--ratio 0.3 --parameters 3M", {"parameters": "3M"}),
        ("prune", {"ratio": 0.5, "parameters": "3M"}, "--ratio 0.5 --parameters 3M", {"ratio": 0.5}),
        ("plan", {"ratio": 0.5, "heads": 4, "ffn": 8}, "--ratio 0.5 --heads 4 --ffn 8", {"heads": 4, "ffn": 8}),
        ("plan", {"ratio": 0.3, "ffn": 8}, "--ratio 0.3 --ffn 8", {"ffn": 8}),
        ("prune", {"parameters": "3M", "heads": 4}, "--parameters 3M", {"heads": 4}),
        ("prune", {"patience": 3}, "--patience 3", {"patience": 3, "eval_every": 5}),
    ],
)  # fmt: skip
def test_what_asks_for_something_else_is_refused(
    command: str,
    options: dict[str, Any],
    words: str,
    control: dict[str, Any],
    captured: list[Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(flags(command, options)) == 2
    assert capsys.readouterr().err.startswith(f"loraprune: error: {words}")
    assert captured == []
    assert cli.main(flags(command, control)) == 0
    assert len(captured) == 1


def test_a_file_may_hold_every_option(captured: list[Any], tmp_path: Any) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("ratio: 0.5\nheads: 4\n")  # as run.yaml does after --heads 4
    assert cli.main(flags("prune", {"config": file})) == 0
    assert cli.main(flags("prune", {"config": file, "ffn": 8})) == 0
    assert [options.ffn for options in captured] == [None, 8]
    assert cli.main(flags("prune", {"config": file, "ratio": 0.5})) == 2  # typed, and without effect
    with pytest.raises(ConfigError, match=r"ratio=0\.3 heads=4"):
        LoRAPruneConfig(ratio=0.3, heads=4)
