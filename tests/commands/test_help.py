"""Help shows what people use, on lines that fit, with every option in one group; shells complete the same options."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from loraprune import cli
from loraprune.commands import help as helping
from loraprune.commands.verbs import COMMANDS, SECTIONS
from loraprune.config.base import Options, dashed
from loraprune.config.commands import PlanConfig
from loraprune.config.describe import GROUPS, describe
from loraprune.config.training import PruneConfig
from loraprune.runtime.run_file import write_run
from loraprune.runtime.workspace import workspace_of

FLAG = re.compile(r"^  (?:-h, )?(--[\w-]+)", re.MULTILINE)
JARGON = re.compile(r"type: |Literal|null|<class|MISSING|_factory|--\w+_\w+")


def shown(*arguments: str, columns: int, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("NO_COLOR", "1")
    text = helping.answer(arguments)
    assert text is not None
    return text


@pytest.mark.parametrize("verb", COMMANDS)
@pytest.mark.parametrize("columns", [80, 120, 300])
def test_help_fits_and_speaks_plainly(verb: str, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for words in ((verb, "--help"), (verb, "--help-all")):
        text = shown(*words, columns=columns, monkeypatch=monkeypatch)
        assert max(map(len, text.splitlines())) <= min(columns, helping.WIDEST + 2)
        assert not JARGON.search(text)
        assert text.startswith(f"usage: loraprune {verb} ")
        assert "\nexamples:\n  loraprune " in text


def test_jargon_would_be_found() -> None:
    for text in ("(type: int, default: 3)", "--eval_every N", "default: null", "Literal['a']"):
        assert JARGON.search(text)


@pytest.mark.parametrize("verb", ["prune", "finetune", "plan", "evaluate", "compare"])
def test_help_shows_the_common_options_and_help_all_every_one(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    few, all_ = (
        set(FLAG.findall(shown(verb, word, columns=100, monkeypatch=monkeypatch))) for word in ("--help", "--help-all")
    )
    own = {f"--{dashed(one.name)}" for one in fields(COMMANDS[verb].options) if one.name != COMMANDS[verb].bare}
    assert own - all_ == set()
    assert few - all_ == {"--help-all"}
    assert 8 <= len(few & own) <= 18
    assert {"--debug", "--trust-remote-code"} & few == set()


@pytest.mark.parametrize("verb", [verb for verb, command in COMMANDS.items() if not command.common])
def test_a_command_with_few_options_shows_all_at_once(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(verb, "--help", columns=100, monkeypatch=monkeypatch)
    own = {f"--{dashed(one.name)}" for one in fields(COMMANDS[verb].options) if one.name != COMMANDS[verb].bare}
    assert own - set(FLAG.findall(text)) == set()
    assert "--help-all" not in text


def test_choices_and_defaults_are_shown_once_in_plain_form(monkeypatch: pytest.MonkeyPatch) -> None:
    text = " ".join(shown("prune", "--help-all", columns=120, monkeypatch=monkeypatch).split())
    assert "--allocation {auto,measured,searched,uniform,balanced,paper,global} " in text
    assert "--html {true,false} " in text
    assert "--overwrite replace" in text  # a switch without a value
    for default in ("(default: 0.5)", "(default: 0.0001)", "(default: 32)", "(default: 5GB)"):
        assert default in text
    assert "--eval-every N evaluate on the held-out data every N optimiser steps; by default only" in text
    for option in text.split(" --"):
        assert option.count("default: ") <= 1, option
    benchmark = shown("benchmark", "--help", columns=120, monkeypatch=monkeypatch)
    assert "--batches [N,...]" in benchmark
    assert "(default: [1,16])" in benchmark


def test_every_option_has_a_text_and_one_group() -> None:
    names = [name for members in GROUPS.values() for name in members]
    assert len(names) == len(set(names))
    described = {option.name for command in COMMANDS.values() for option in describe(command.options)}
    assert described == set(names)
    assert {command for verbs in SECTIONS.values() for command in verbs} == set(COMMANDS)
    for command in COMMANDS.values():
        assert set(command.common) <= {one.name for one in fields(command.options)}


@dataclass(frozen=True, kw_only=True)
class Silent(Options):
    length: int = 3


@dataclass(frozen=True, kw_only=True)
class Homeless(Options):
    colour: str = "red"
    """a colour"""


@pytest.mark.parametrize("kind", [Silent, Homeless])
def test_an_option_without_text_or_group_is_an_error(kind: type[Options]) -> None:
    with pytest.raises(KeyError, match=fields(kind)[0].name):
        describe(kind)


def test_a_default_that_a_class_changes_is_shown() -> None:
    found = {kind: {option.name: option for option in describe(kind)} for kind in (PlanConfig, PruneConfig)}
    assert found[PlanConfig]["dtype"].default_text == "bfloat16"
    assert found[PruneConfig]["dtype"].default_text == "auto"
    assert found[PlanConfig]["model"].text != found[PruneConfig]["model"].text


@pytest.mark.parametrize(
    "example", [*helping.FIRST, *(example for command in COMMANDS.values() for example in command.examples)]
)
def test_examples_are_accepted(
    example: str, captured: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("small", workspace_of(Path("small"))):
        Path(folder).mkdir()
    write_run(workspace_of(Path("small")), "prune", {})
    (tmp_path / "grid.yaml").write_text("{model: demo, data: stdlib, output: grid}")
    words = shlex.split(example)
    if words[0] in ("prune", "finetune", "resume"):
        Path("small").rmdir()
    else:
        Path("small", "report.json").write_text("{}")
    assert cli.main(words) == 0
    assert len(captured) == 1


def test_a_long_example_is_broken_into_lines_that_a_shell_joins(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown("prune", "--help", columns=80, monkeypatch=monkeypatch)
    joined = text[text.index("examples:") :].replace("\\\n", " ")
    assert [shlex.split(line)[1:] for line in joined.splitlines()[1:]] == list(
        map(shlex.split, COMMANDS["prune"].examples)
    )


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"loraprune {version('loraprune')}\n"


# Completion


def test_completion_without_its_extra_and_for_an_unknown_shell(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(helping, "find_spec", lambda name: None)
    assert cli.main(["--print-completion", "bash"]) == 2
    assert "pip install 'loraprune[completion]'" in capsys.readouterr().err
    assert cli.main(["--print-completion=bahs"]) == 2
    assert "did you mean 'bash'" in capsys.readouterr().err


@pytest.mark.parametrize("shell", helping.SHELLS)
def test_a_shell_is_given_all_commands_and_options(shell: str) -> None:
    pytest.importorskip("shtab")
    script = helping.answer(["--print-completion", shell])
    assert script
    for word in ("compare-models", "eval-every", "uniform", "layerwise"):
        assert word in script
    assert "eval_every" not in script


def completions(script: Path, line: str) -> set[str]:
    """Return what bash offers for the last word of a line."""
    words = line.split(" ")
    code = (
        f"source {script}; COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}; "
        "$(complete -p loraprune | sed 's/.*-F \\([^ ]*\\).*/\\1/'); printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=False, timeout=60)
    return set(done.stdout.split())


def test_bash_completes_commands_options_and_choices(tmp_path: Path) -> None:
    pytest.importorskip("shtab")
    if shutil.which("bash") is None:
        pytest.skip("no bash")
    script = tmp_path / "completion.bash"
    script.write_text(helping.answer(["--print-completion", "bash"]) or "")
    assert completions(script, "loraprune pr") == {"prune"}
    assert completions(script, "loraprune prune --eval-e") == {"--eval-every"}
    assert {"uniform", "global"} <= completions(script, "loraprune prune --allocation ")
    assert completions(script, "loraprune inspect --eval-e") == set()
