"""A run ends with a verdict, where its files are, and commands that the parser accepts; a ruined model never looks like a success."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from loraprune import cli
from loraprune.commands.parser import parse
from loraprune.commands.tables.ending import next_steps
from loraprune.commands.tables.results import report as print_report
from loraprune.config.training import FinetuneConfig, PruneConfig, as_dict
from loraprune.reporting.card import model_card
from loraprune.reporting.report import Report
from tests.reporting.test_new_head import values


def finished(times: float, **changes: Any) -> Report:
    """Return the report of a run whose perplexity is `times` that of the dense model."""
    found = values() | {
        "task": "causal-lm", "metric": "perplexity", "ratio_requested": 0.5, "ratio_reached": 0.5, "steps": 100,
        "perplexity": {"dense": 10.0, "pruned": 10.0 * times, "tokens": 9, "protocol": {}, "nll": {"dense": 2.3, "pruned": 3.0},
                       "standard_error": {"dense": None, "pruned": None}},
        "parameters": {"dense": 1000, "pruned": 700, "trainable": 5, "prunable_dense": 600, "prunable_pruned": 300},
        "saved_as": {"model_type": "llama", "load": "x"}, "curve": [{"step": 1, "loss": 3.0, "lr": 1e-4}],
    } | changes  # fmt: skip
    return replace(Report.from_json(found), folder="small", model="demo", data="stdlib")


NEW_HEAD = {"trained_whole": ["lm_head"]}
SPARSITY = {"sparsity": {"pattern": "2:4", "ratio_requested": 0.5, "ratio_reached": 0.5, "zeros": 3, "weights": 6}}
TARGET = {"ratio_requested": None, "target": {"parameters": "700", "heads": None}}
SPEED = {
    "speedup": 2.05, "dense_seconds": 0.2, "pruned_seconds": 0.1, "timed": "prefill", "tokens": 256, "device": "cpu",
}  # fmt: skip
CASES: dict[str, tuple[Report, list[str]]] = {
    "usable": (finished(1.1), ["evaluate", "export"]),
    "between": (finished(1.5), ["--steps 200", "--ratio 0.25"]),
    "ruined": (finished(16), ["--ratio 0.25", "--steps 200"]),
    "no training": (finished(1.5, steps=0), ["--steps 200", "--ratio 0.25"]),
    "2:4": (finished(16, **SPARSITY), ["--steps 200"]),
    "size": (finished(16, ratio_requested=None, target={"size": 0.6}), ["--size 0.8", "--steps 200"]),
    "limit of loss": (finished(1.5, ratio_requested=None, target={"max_drop": 0.6}), ["--steps 200", "--max-drop 0.3"]),
    "parameters": (finished(16, **TARGET), ["--parameters 850", "--steps 200"]),
    "file": (
        finished(
            16,
            ratio_requested=None,
            target={"file_size": "1.5MB"},
            reached={"file_bytes": 1_400_000, "dtype": "float16"},
        ),
        ["--file-size 1700kB", "--steps 200"],
    ),
    "speed": (
        finished(16, ratio_requested=None, target={"speedup": 2.0}, reached=SPEED),
        ["--speedup 1.5", "--steps 200"],
    ),
    "tuned": (finished(1.5, job="finetune"), ["--lr 3.3e-05"]),
    "new head that learned nothing": (finished(1.5, **NEW_HEAD), ["--steps 200", "--ratio 0.25"]),
    "new head": (finished(0.5, **NEW_HEAD), ["finetune", "evaluate"]),
}


@pytest.mark.parametrize("name", CASES)
def test_the_next_commands_fit_the_verdict_and_are_accepted(
    name: str, captured: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, expected = CASES[name]
    monkeypatch.chdir(tmp_path)
    Path("small").mkdir()
    kind = PruneConfig if result.job == "prune" else FinetuneConfig
    (tmp_path / "small" / "run.yaml").write_text(
        yaml.safe_dump(as_dict(kind(model="demo", data="stdlib", output="small-1")))
    )
    commands = [command for _, command in next_steps(result)]
    assert len(commands) == len(expected)
    for command, words in zip(commands, expected, strict=True):
        assert words in command
        assert cli.main(shlex.split(command)[1:]) == 0, command
    assert len(captured) == len(commands)


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize(("times", "word"), [(1.1, "usable"), (1.5, "train longer or cut less"), (16, "ruined")])
def test_the_terminal_and_the_card_say_how_good_the_model_is(
    times: float, word: str, columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    result = finished(times)
    print_report(result)
    shown = capsys.readouterr().out
    ending = shown[shown.index("verdict ") :]
    figures = f"perplexity {10 * times:.4g}, {times:.3g} times the dense model's 10"
    assert " ".join(ending.split()).startswith(f"verdict {word}: {figures}")
    assert max(map(len, ending[: ending.index("result")].splitlines())) <= columns
    assert "\nresult   small\nreport   small/report.json\n" in ending
    assert f"Verdict of the run: {word} (perplexity" in model_card(result, output="small")
    if word != "usable":
        assert "export" not in ending


def test_report_html_is_named_where_it_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("small").mkdir()
    Path("small/report.html").touch()
    print_report(finished(1.1))
    assert "\nreport   small/report.html\n" in capsys.readouterr().out


def test_a_command_stays_on_one_line_and_a_name_with_a_space_is_quoted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    print_report(replace(finished(16), folder="a b"))
    assert "\n  loraprune prune --config 'a b/run.yaml' --output 'a b-2' --ratio 0.25\n" in capsys.readouterr().out


def test_figures_of_an_untrained_head_are_named_as_such(capsys: pytest.CaptureFixture[str]) -> None:
    print_report(finished(0.5, **NEW_HEAD))
    shown = " ".join(capsys.readouterr().out.split())
    assert "verdict not comparable: perplexity 5 after 10 with an untrained head" in shown
    assert "loraprune finetune --model demo" in shown


def test_the_dense_model_is_tuned_with_the_options_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = {
        "batch": 2,
        "length": 64,
        "lr": 1e-3,
        "checkpointing": True,
        "eval": "it's.txt",
        "data": ["a b.txt", "c.txt"],
    }
    config = PruneConfig(model="demo", output="small", ratio=0.3, steps=100, **own)
    Path("small").mkdir()
    Path("small/run.yaml").write_text(yaml.safe_dump(as_dict(config)))
    (command,) = (command for _, command in next_steps(finished(0.5, **NEW_HEAD)) if "finetune" in command)
    _, options = parse(shlex.split(command)[1:])
    assert {name: getattr(options, name) for name in own if name != "data"} == {
        n: v for n, v in own.items() if n != "data"
    }
    assert "ratio" not in command
