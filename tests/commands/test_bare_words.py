"""The model may be given without its flag, where a command has one; underscores and dashes mean the same."""

from __future__ import annotations

from typing import Any

import pytest

from loraprune import cli
from loraprune.commands.parser import normalise


@pytest.mark.parametrize(
    "words",
    [
        ["inspect", "demo"], ["inspect", "--model", "demo"], ["inspect", "--model=demo"], ["inspect", "--json", "demo"],
        ["inspect", "demo", "--json"], ["inspect", "--json", "true", "demo"], ["inspect", "--task", "causal-lm", "demo"],
        ["inspect", "--trust-remote-code", "demo"], ["inspect", "--trust_remote_code=false", "demo"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_the_model_needs_no_flag_wherever_it_is(words: list[str], captured: list[Any]) -> None:
    assert cli.main(words) == 0
    assert captured[0].model == "demo"


@pytest.mark.parametrize("verb", ["inspect", "plan", "benchmark", "evaluate", "export"])
def test_commands_about_one_model_take_it_as_a_word(verb: str, captured: list[Any]) -> None:
    needed = {"evaluate": ["--data", "stdlib"], "export": ["--output", "o"]}.get(verb, [])
    assert cli.main([verb, "demo", *needed]) == 0
    assert cli.main([verb, *needed, "--model", "demo"]) == 0
    assert captured[0] == captured[1]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["inspect", "demo", "--model", "other"], "inspect demo: --model is given too; leave one of the two out"),
        (["inspect", "--model=demo", "demo"], "inspect demo: --model is given too; leave one of the two out"),
        (["inspect", "demo", "other"], "inspect demo other: only one model is allowed; see `loraprune inspect --help`"),
        (["compare-models", "a", "b", "--models", "[c]"], "compare-models a b: --models is given too; leave one of the two out"),
    ],
)  # fmt: skip
def test_a_model_given_twice_is_refused(words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 2
    assert capsys.readouterr().err == f"loraprune: error: {line}\n"


def test_a_command_without_such_a_word_refuses_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["prune", "demo", "--data", "stdlib", "--output", "o"]) == 2
    assert "'demo'" in capsys.readouterr().err


def test_several_models_become_a_list() -> None:
    assert normalise(["compare-models", "A", "B", "--data", "D"]) == [
        "compare-models", '--models=["A", "B"]', "--data", "D",
    ]  # fmt: skip
    assert normalise(["compare-models", "--models", "[A]"]) == ["compare-models", "--models", "[A]"]
    assert normalise(["prune", "--model", "M", "--overwrite", "--lr", "-1"]) == [
        "prune", "--model", "M", "--overwrite=true", "--lr", "-1",
    ]  # fmt: skip


def test_messages_write_options_with_dashes(capsys: pytest.CaptureFixture[str]) -> None:
    base = ["prune", "--model", "demo", "--data", "stdlib", "--output", "o"]
    assert cli.main([*base, "--eval_every", "often", "--eval_evry", "3"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "loraprune: error: --eval-every often: a whole number is needed",
        "loraprune: error: unknown option 'eval-evry' (did you mean 'eval-every'?): see `loraprune prune --help`",
    ]
