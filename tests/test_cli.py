"""The command line: options and files, exit codes, and one clear line for everything that can be wrong."""

from __future__ import annotations

import gc
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from loraprune import cli
from loraprune.config import PruneConfig
from loraprune.errors import DataError, VerificationError
from tests.samples import byte_tokenizer, save_tiny, write_text

COMMANDS = ("inspect", "plan", "prune", "finetune", "evaluate", "benchmark", "demo")
SHORT = ["--steps", "2", "--batch", "2", "--length", "32", "--device", "cpu"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module", autouse=True)
def _frozen_heap() -> Iterator[None]:
    """Spare the garbage collections of every run the objects of the imported libraries: they take most of the time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@dataclass(frozen=True)
class Case:
    """A folder that holds a good model, a good text, and nothing else."""

    root: Path

    @property
    def model(self) -> Path:
        return self.root / "model"

    @property
    def text(self) -> Path:
        return self.root / "text.txt"

    @property
    def output(self) -> Path:
        return self.root / "out"

    def arguments(self, command: str = "prune", **changes: str) -> list[str]:
        """Return a good command line with some options changed."""
        options = {"model": str(self.model), "data": str(self.text), "output": str(self.output)} | changes
        return [command, *(part for name, value in options.items() for part in (f"--{name}", value)), *SHORT]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("good")
    save_tiny(root / "model")
    write_text(root / "text.txt")
    return root


@pytest.fixture
def case(good: Path, tmp_path: Path) -> Case:
    root = tmp_path / "case"
    shutil.copytree(good, root)
    return Case(root)


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Replace what the commands do by recording the options they are given."""
    seen: list[Any] = []

    def call(target: str, *arguments: Any) -> Any:
        if not target.startswith("tables:"):
            seen.append(arguments[0])
        return SimpleNamespace(values={"target": target})

    monkeypatch.setattr(cli, "call", call)
    return seen


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120, check=False)


def refused(arguments: list[str], capfd: pytest.CaptureFixture[str], *words: str, root: Path | None = None) -> str:
    """Run a wrong command line: exit code 2, one line with every one of `words`, and nothing new on the disk."""
    before = sorted(root.iterdir()) if root else []
    capfd.readouterr()
    code = cli.main(arguments)
    out, err = capfd.readouterr()
    assert code == 2, err
    assert out == ""
    assert err.startswith("loraprune: error: ")
    assert err.count("\n") == 1, err
    assert err.endswith("\n")
    assert "Traceback" not in err
    for word in words:
        assert word in err
    if root:
        assert sorted(root.iterdir()) == before
    return err


# Help


def test_help_of_every_command_imports_no_torch() -> None:
    script = f"""
import contextlib, io, sys
from loraprune.cli import main
for arguments in [["--help"], *([name, "--help"] for name in {COMMANDS!r})]:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            main(arguments)
        except SystemExit as stop:
            assert stop.code == 0, arguments
    assert "usage: loraprune" in out.getvalue()
print([name for name in ("torch", "transformers", "peft", "datasets") if name in sys.modules])
"""
    result = python("-c", script)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "[]\n"


def test_help_names_every_command_and_the_text_of_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in COMMANDS)
    with pytest.raises(SystemExit):
        cli.main(["prune", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for option in ("--ratio", "--config", "--json", "--overwrite", "--criterion"):
        assert option in shown
    assert "fraction of the prunable parameters to remove" in shown


def test_no_command_shows_the_help_and_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([])
    assert stop.value.code == 2
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
    base = ["prune", "--model", "m", "--data", "d", "--output", "o"]
    refused([*base, "--ratoi", "0.3"], capfd, "'ratoi'", "did you mean 'ratio'", "--help")
    refused([*base, "--ratoi=0.3"], capfd, "'ratoi'", "did you mean 'ratio'")
    refused([*base, "--overwrit"], capfd, "'overwrit'", "did you mean 'overwrite'")


def test_unknown_command_names_the_nearest(capfd: pytest.CaptureFixture[str]) -> None:
    refused(["prun", "--model", "m"], capfd, "'prun'", "did you mean 'prune'", "--help")


def test_unknown_key_of_a_file_names_the_nearest(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("model: m\ndata: d\noutput: o\nratoi: 0.3\n")
    refused(["prune", "--config", str(file)], capfd, "ratoi", "did you mean 'ratio'")


def test_bad_files_are_refused(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    missing, broken, folder = tmp_path / "missing.yaml", tmp_path / "broken.yaml", tmp_path
    broken.write_text("model: [m\n")
    for file in (missing, broken, folder):
        refused(["prune", "--config", str(file)], capfd, "config")


def test_missing_options_are_named(capfd: pytest.CaptureFixture[str]) -> None:
    refused(["prune", "--model", "m"], capfd, "--data", "--output")


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("ratio", "1.0", "[0, 1)"), ("ratio", "-0.1", "[0, 1)"), ("ratio", "nan", "nan"), ("ratio", "half", "half"),
        ("steps", "0", "at least 1"), ("steps", "1.5", "1.5"), ("lr", "0", "positive"), ("lr", "inf", "inf"),
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
    base = ["prune", "--model", "m", "--data", "d", "--output", str(tmp_path / "out")]
    refused([*base, f"--{option}", value], capfd, option, words, root=tmp_path)


def test_all_wrong_values_are_named_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    base = ["prune", "--model", "m", "--data", "d", "--output", "o"]
    refused([*base, "--ratio", "2", "--rank", "0", "--batch", "0"], capfd, "--ratio 2.0", "--rank 0", "--batch 0")


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


# Wrong models


def edit_config(case: Case, **changes: object) -> None:
    path = case.model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(case: Case, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = case.model / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def make_gpt2(case: Case) -> None:
    shutil.rmtree(case.model)
    GPT2LMHeadModel(GPT2Config(vocab_size=264, n_embd=8, n_layer=1, n_head=2, n_positions=64)).save_pretrained(
        case.model
    )
    byte_tokenizer().save_pretrained(case.model)


def truncate(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def empty(case: Case) -> None:
    shutil.rmtree(case.model)
    case.model.mkdir()


WRONG_MODELS: dict[str, tuple[Callable[[Case], object], list[str]]] = {
    "missing folder": (lambda c: shutil.rmtree(c.model), ["no such folder"]),
    "empty folder": (empty, ["empty", "config.json"]),
    "a file": (lambda c: (shutil.rmtree(c.model), c.model.write_text("weights")), ["this is a file"]),
    "no configuration": (lambda c: (c.model / "config.json").unlink(), ["no config.json"]),
    "torn configuration": (lambda c: truncate(c.model / "config.json", 60), ["config.json"]),
    "configuration of another model": (lambda c: edit_config(c, hidden_size=48), ["wrong shape"]),
    "invalid configuration": (lambda c: edit_config(c, num_attention_heads=5), ["config.json"]),
    "unknown type": (lambda c: edit_config(c, model_type="lama"), ["lama", "did you mean 'llama'", "add-a-family"]),
    "unsupported family": (make_gpt2, ["gpt2", "llama", "add-a-family"]),
    "no weights": (lambda c: (c.model / "model.safetensors").unlink(), ["model.safetensors"]),
    "truncated weights": (lambda c: truncate(c.model / "model.safetensors", 20_000), ["torn"]),
    "empty weights": (lambda c: truncate(c.model / "model.safetensors", 0), ["torn"]),
    "a tensor missing": (
        lambda c: edit_weights(c, lambda t: t.pop("model.layers.1.mlp.up_proj.weight")),
        ["lacks model.layers.1.mlp.up_proj.weight"],
    ),
    "NaN weights": (
        lambda c: edit_weights(c, lambda t: t["model.layers.0.mlp.up_proj.weight"][3].fill_(float("nan"))),
        ["model.layers.0.mlp.up_proj.weight", "NaN"],
    ),
    "quantised": (
        lambda c: edit_config(c, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        ["quantised", "checkpoint"],
    ),
    "no tokenizer": (lambda c: [p.unlink() for p in c.model.glob("token*")], ["tokenizer"]),
    "tokenizer of another model": (
        lambda c: byte_tokenizer(extra=20).save_pretrained(c.model),
        ["tokenizer does not fit", "278", "264"],
    ),
    "code from the checkpoint": (
        lambda c: edit_config(c, model_type="own", auto_map={"AutoConfig": "own.Config"}),
        ["--trust-remote-code"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", sorted(WRONG_MODELS))
def test_wrong_model_is_refused(what: str, case: Case, capfd: pytest.CaptureFixture[str]) -> None:
    damage, words = WRONG_MODELS[what]
    damage(case)
    error = refused(case.arguments(), capfd, *words, root=case.root)
    assert str(case.model) in error or "does not fit" in error or "gpt2" in error


@pytest.mark.parametrize("command", ["evaluate", "benchmark", "inspect", "plan", "finetune"])
def test_every_command_refuses_a_missing_model(command: str, case: Case, capfd: pytest.CaptureFixture[str]) -> None:
    options = {"evaluate": ["--data", str(case.text)], "finetune": case.arguments("finetune")[3:]}.get(command, [])
    arguments = [command, "--model", str(case.root / "missing"), *options]
    refused(arguments, capfd, "missing: no such folder", root=case.root)


def test_against_is_checked_too(case: Case, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["benchmark", "--model", str(case.model), "--against", str(case.root / "missing")]
    refused(arguments, capfd, "missing: no such folder")


# Wrong data, targets and outputs


def test_wrong_data_is_refused(case: Case, capfd: pytest.CaptureFixture[str]) -> None:
    for name, content, words in (
        ("missing.txt", None, ["no such file"]),
        ("empty.txt", "", ["empty"]),
        ("short.txt", "short", ["--length"]),
        ("column.jsonl", '{"txet": "one"}\n', ["txet", "`text`"]),
        ("torn.jsonl", '{"text": "one"}\n{"te', ["line 2: malformed JSON"]),
    ):
        path = case.root / name
        if content is not None:
            path.write_text(content)
        refused(case.arguments(data=str(path)), capfd, str(path), *words, root=case.root)
        if name != "short.txt":  # few tokens to judge by are still some
            refused(case.arguments(eval=str(path)), capfd, str(path), *words, root=case.root)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ratio": "0.99"}, ["--ratio 0.99", "at most 0."]),
        ({"parameters": "10"}, ["--parameters 10", "never pruned"]),
        ({"parameters": "10M"}, ["--parameters 10M"]),
        ({"heads": "3", "ffn": "32"}, ["--heads 3", "multiples of 2"]),
        ({"ffn": "100"}, ["--ffn 100", "64"]),
        ({"criterion": "magnitud"}, ["'magnitud'", "did you mean 'magnitude'"]),
    ],
)
def test_unreachable_target_is_refused_with_what_can_be_had(
    changes: dict[str, str], words: list[str], case: Case, capfd: pytest.CaptureFixture[str]
) -> None:
    refused(case.arguments(**changes), capfd, *words, root=case.root)


@pytest.mark.parametrize("command", ["prune", "finetune"])
def test_output_in_use_is_refused_and_left_alone(command: str, case: Case, capfd: pytest.CaptureFixture[str]) -> None:
    case.output.mkdir()
    (case.output / "mine").write_text("keep")
    refused(case.arguments(command), capfd, str(case.output), "--overwrite", root=case.root)
    assert (case.output / "mine").read_text() == "keep"


def test_output_that_cannot_be_written_is_refused(case: Case, capfd: pytest.CaptureFixture[str]) -> None:
    refused(case.arguments(output=str(case.text / "out")), capfd, "--output", str(case.text), root=case.root)


@pytest.mark.parametrize("command", ["prune", "finetune"])
def test_loss_that_becomes_nan_is_refused(command: str, case: Case, capfd: pytest.CaptureFixture[str]) -> None:
    refused([*case.arguments(command), "--lr", "1e30"], capfd, "step", "--lr", root=case.root)


def test_missing_device_is_refused(case: Case, capfd: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    refused([*case.arguments(), "--device", "cuda"], capfd, "--device cuda", "--device cpu", root=case.root)


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
