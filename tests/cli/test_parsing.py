"""Options and files, exit codes, and results as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loraprune import cli
from loraprune.config.training import PruneConfig
from loraprune.errors import DataError, VerificationError
from tests.cli.cases import COMMANDS, Case, python, refused

# Help


def test_help_of_every_command_imports_no_torch() -> None:
    script = f"""
import contextlib, io, sys
from loraprune.cli import main
for arguments in [["--help"], *([name, "--help"] for name in {COMMANDS!r})]:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(arguments) == 0, arguments
    assert "usage: loraprune" in out.getvalue()
print([name for name in ("torch", "transformers", "peft", "datasets") if name in sys.modules])
"""
    result = python("-c", script)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "[]\n"


def test_help_names_every_command_and_the_text_of_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in COMMANDS)
    assert cli.main(["prune", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for option in ("--ratio", "--config", "--json", "--overwrite", "--help-all"):
        assert option in shown
    assert "fraction of the prunable parameters to remove" in shown


def test_no_command_shows_the_help_and_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "prune" in capsys.readouterr().out


# Options and files


def test_flags_reach_the_configuration(captured: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["prune", "--model", "m", "--data", "d", "--output", "o", "--ratio=0.25", "--steps", "7", "--json"]
    assert cli.main(arguments) == 0
    assert captured == [PruneConfig(model="m", data="d", output="o", ratio=0.25, steps=7)]
    assert json.loads(capsys.readouterr().out) == {"target": "pipeline:prune"}


def test_bare_switches_and_hyphens_mean_true(captured: list[Any]) -> None:
    base = ["prune", "--model", "m", "--data", "d", "--output", "o"]
    for switch in (["--trust-remote-code", "--overwrite"], ["--overwrite", "true", "--trust_remote_code=true"]):
        assert cli.main([*base[:1], *switch, *base[1:]]) == 0
        assert cli.main([*base, *switch]) == 0
    assert {(options.overwrite, options.trust_remote_code) for options in captured} == {(True, True)}
    cli.main([*base, "--overwrite", "false", "--shrink=false"])
    assert (captured[-1].overwrite, captured[-1].shrink) == (False, False)


@pytest.mark.parametrize("flag_first", [True, False])
def test_flags_override_the_file_wherever_they_stand(flag_first: bool, captured: list[Any], tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("model: m\ndata: d\noutput: o\nratio: 0.3\nsteps: 9\noverwrite: true\n")
    flag, config = ["--ratio", "0.4"], ["--config", str(file)]
    assert cli.main(["prune", *(flag + config if flag_first else config + flag)]) == 0
    assert captured == [PruneConfig(model="m", data="d", output="o", ratio=0.4, steps=9, overwrite=True)]


def test_lists_are_given_as_in_yaml(captured: list[Any]) -> None:
    assert cli.main(["benchmark", "--model", "m", "--batches", "[2, 4]"]) == 0
    assert captured[0].batches == [2, 4]


def test_unknown_option_names_the_nearest(capfd: pytest.CaptureFixture[str]) -> None:
    base = ["prune", "--model", "demo", "--data", "stdlib", "--output", "o"]
    refused([*base, "--ratoi", "0.3"], capfd, "'ratoi'", "did you mean 'ratio'", "--help")
    refused([*base, "--ratoi=0.3"], capfd, "'ratoi'", "did you mean 'ratio'")
    refused([*base, "--overwrit"], capfd, "'overwrit'", "did you mean 'overwrite'")


def test_unknown_command_names_the_nearest(capfd: pytest.CaptureFixture[str]) -> None:
    refused(["prun", "--model", "m"], capfd, "'prun'", "did you mean 'prune'", "--help")


def test_unknown_key_of_a_file_names_the_nearest(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("model: demo\ndata: stdlib\noutput: o\nratoi: 0.3\n")
    refused(["prune", "--config", str(file)], capfd, "ratoi", "did you mean 'ratio'")


def test_bad_files_are_refused(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    missing, broken, folder = tmp_path / "missing.yaml", tmp_path / "broken.yaml", tmp_path
    broken.write_text("model: [m\n")
    for file in (missing, broken, folder):
        refused(["prune", "--config", str(file)], capfd, "config")


def test_missing_options_are_named(capfd: pytest.CaptureFixture[str]) -> None:
    refused(["prune", "--model", "demo"], capfd, "missing --data --output: see `loraprune prune --help`")


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("ratio", "1.0", "[0, 1)"), ("ratio", "-0.1", "[0, 1)"), ("ratio", "nan", "nan"), ("ratio", "half", "half"),
        ("steps", "-1", "at least 0"), ("steps", "1.5", "1.5"), ("lr", "0", "positive"), ("lr", "inf", "inf"),
        ("batch", "0", "at least 1"), ("length", "1", "at least 2"), ("epochs", "-1", "positive"),
        ("rank", "0", "at least 1"), ("decay", "1", "[0, 1)"), ("dropout", "1", "[0, 1)"), ("round", "0", "at least 1"),
        ("warmup", "1", "[0, 1)"), ("seed", "-1", "2^32"), ("heads", "0", "at least 1"), ("ffn", "-8", "at least 1"),
        ("parameters", "many", "600M"), ("device", "tpu", "tpu"), ("dtype", "int8", "int8"),
        ("schedule", "square", "square"), ("power", "3", "3"), ("overwrite", "perhaps", "perhaps"),
    ],
)  # fmt: skip
def test_wrong_value_is_named_with_what_is_right(
    option: str, value: str, words: str, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    base = ["prune", "--model", "demo", "--data", "stdlib", "--output", str(tmp_path / "out")]
    lines = 2 if option == "warmup" else 1  # with the default cooldown it is too long, too
    refused([*base, f"--{option}", value], capfd, option, words, root=tmp_path, lines=lines)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["prune", "--heads", "many"], "--heads many: a whole number is needed"),
        (["prune", "--lr", "fast"], "--lr fast: a number is needed"),
        (["prune", "--shrink", "perhaps"], "--shrink perhaps: true or false is needed"),
        (["prune", "--power", "3"], "--power 3: one of 1, 2 is needed"),
        (
            ["prune", "--allocation", "papr"],
            "--allocation papr (did you mean 'paper'?): one of auto, measured, searched, uniform, balanced, paper, global is needed",
        ),
        (["benchmark", "--batches", "3"], "--batches 3: a list, such as [1, 2] is needed"),
    ],
)
def test_a_value_of_the_wrong_type_is_told_in_plain_words(
    arguments: list[str], line: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    needed = ["--data", "stdlib", "--output", str(tmp_path / "out")] if arguments[0] == "prune" else []
    assert cli.main([*arguments, "--model", "demo", *needed]) == 2
    assert capsys.readouterr().err == f"loraprune: error: {line}\n"


def test_all_wrong_values_are_named_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    base = ["prune", "--model", "demo", "--data", "stdlib", "--output", "o"]
    wrong = ["--ratio", "2", "--rank", "0", "--batch", "0"]
    refused([*base, *wrong], capfd, "--ratio 2.0", "--rank 0", "--batch 0", lines=3)


# Exit codes


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (DataError("bad\n  data"), 2, "loraprune: error: bad data\n"),
        (VerificationError("differs"), 1, "loraprune: error: differs\n"),
        (
            ZeroDivisionError("of\nsomething"),
            1,
            "loraprune: failed: ZeroDivisionError: of something (--debug shows where)\n",
        ),
        (KeyboardInterrupt(), 130, "loraprune: interrupted; nothing was written\n"),
    ],
)
def test_errors_have_their_exit_code_and_one_line(
    error: BaseException, code: int, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(arguments: object) -> None:
        raise error

    monkeypatch.setattr(cli, "run", fail)
    assert cli.main(["prune"]) == code
    assert capsys.readouterr() == ("", line)


def test_debug_raises_the_error_itself() -> None:
    arguments = ["prune", "--model", "m", "--data", "d", "--output", "o", "--ratio", "2"]
    with pytest.raises(ValueError, match="--ratio 2"):
        cli.main([*arguments, "--debug"])


def test_wrong_input_of_the_real_command_is_one_line_without_a_traceback(case: Case) -> None:
    (case.model / "config.json").unlink()
    result = python("-m", "loraprune", *case.arguments())
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1, result.stderr
    assert str(case.model) in result.stderr
    assert sorted(path.name for path in case.root.iterdir()) == ["model", "text.txt"]


# Results


def test_inspect_and_plan_print_json(case: Case, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", "--model", str(case.model), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["family"] == "llama"
    assert cli.main(["plan", "--model", str(case.model), "--ratio", "0.5", "--json"]) == 0
    out, err = capfd.readouterr()
    assert abs(json.loads(out)["ratio_reached"] - 0.5) < 0.1
    assert err == ""


def test_evaluate_prints_json(case: Case, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["evaluate", "--model", str(case.model), "--data", str(case.text), "--length", "32", "--device", "cpu"]
    assert cli.main([*arguments, "--json"]) == 0
    out, err = capfd.readouterr()
    measured = json.loads(out)["models"][str(case.model)]
    assert 100 < measured["perplexity"] < 1000  # an untrained model guesses among 264 tokens
    assert err == ""
    assert cli.main(arguments) == 0
    assert "perplexity" in capfd.readouterr().out.lower()


def test_benchmark_prints_json(case: Case, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["benchmark", "--model", str(case.model), "--batches", "[1]", "--length", "8", "--tokens", "2",
                 "--repeats", "1", "--device", "cpu", "--json"]  # fmt: skip
    assert cli.main(arguments) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["rows"][str(case.model)]["parameters"] > 0
    assert err == ""
