"""A model, a text or a run file from a stranger: no code of theirs is run, nothing outside their folder is read, no token is written."""

from __future__ import annotations

import json
import pickle
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from loraprune import cli
from loraprune.errors import hide_secrets
from tests.cli.cases import Case, refused, run

TOKEN = "hf_AbCdEfGhIjKlMnOpQrStUvWxYz0123456789"[:37]
EVALUATE = ("--length", "32", "--device", "cpu")


class Mark:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.path,)


def evaluate(case: Case, *flags: str) -> list[str]:
    return ["evaluate", "--model", str(case.model), "--data", str(case.text), *EVALUATE, *flags]


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# Pickles


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pkl", "last.ckpt", "model.pth"])
def test_pickled_weights_are_refused_in_words_and_never_read(
    name: str, case: Case, capfd: pytest.CaptureFixture[str]
) -> None:
    mark = case.root / "ran"
    (case.model / "model.safetensors").unlink()
    (case.model / name).write_bytes(pickle.dumps(Mark(mark)))
    for flags in ((), ("--trust-remote-code",)):
        refused(evaluate(case, *flags), capfd, name, "pickled", "only safetensors", root=case.root)
    assert not mark.exists()
    pickle.loads((case.model / name).read_bytes())  # the control: it does run when it is read
    assert mark.exists()


def test_pickles_beside_safetensors_are_not_read(case: Case, capfd: pytest.CaptureFixture[str]) -> None:
    (case.model / "pytorch_model.bin").write_bytes(pickle.dumps(Mark(case.root / "ran")))
    run(capfd, *evaluate(case))
    assert not (case.root / "ran").exists()
    pickle.loads((case.model / "pytorch_model.bin").read_bytes())
    assert (case.root / "ran").exists()  # the control


def test_scores_are_no_pickle_either(case: Case, capfd: pytest.CaptureFixture[str]) -> None:
    scores = case.root / "scores.safetensors"
    scores.write_bytes(pickle.dumps(Mark(case.root / "ran")))
    refused(case.arguments(scores=str(scores)), capfd, "--scores", root=case.root)
    assert not (case.root / "ran").exists()
    pickle.loads(scores.read_bytes())
    assert (case.root / "ran").exists()  # the control


# Code and paths


def test_code_of_a_checkpoint_runs_only_when_it_is_trusted(case: Case, capfd: pytest.CaptureFixture[str]) -> None:
    mark = case.root / "ran"
    (case.model / "own.py").write_text(
        "from transformers import LlamaConfig\n"
        f"__import__('pathlib').Path({str(mark)!r}).touch()\n"
        "class Config(LlamaConfig):\n    model_type = 'own'\n"
    )
    edit(case.model / "config.json", model_type="own", auto_map={"AutoConfig": "own.Config"})
    inspect = ["inspect", "--model", str(case.model)]
    refused(inspect, capfd, "--trust-remote-code")
    assert not mark.exists()
    refused([*inspect, "--trust-remote-code"], capfd, "'own'")
    assert mark.exists()


@pytest.mark.parametrize(
    "place", ["../other/model.safetensors", "/etc/passwd", "a/../../b.safetensors", "C:\\x.safetensors", ""]
)
def test_an_index_cannot_lead_out_of_the_folder(place: str, case: Case, capfd: pytest.CaptureFixture[str]) -> None:
    other = case.root / "other"
    other.mkdir()
    shutil.move(case.model / "model.safetensors", other / "model.safetensors")
    index = {"metadata": {}, "weight_map": {"model.norm.weight": place}}
    (case.model / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(evaluate(case), capfd, "model.safetensors.index.json", "outside the folder", root=case.root)


def test_an_index_that_stays_inside_works(case: Case, capfd: pytest.CaptureFixture[str]) -> None:
    names = list(json.loads((case.model / "model.safetensors").read_bytes()[8:].split(b"}}")[0] + b"}}"))
    (case.model / "model.safetensors").rename(case.model / "part.safetensors")
    index = {"metadata": {}, "weight_map": {name: "part.safetensors" for name in names if name != "__metadata__"}}
    (case.model / "model.safetensors.index.json").write_text(json.dumps(index))
    run(capfd, *evaluate(case))
    index["weight_map"]["model.norm.weight"] = "gone.safetensors"
    (case.model / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(evaluate(case), capfd, "'gone.safetensors'", "not in the folder", root=case.root)


def test_neither_can_a_configuration_a_tokenizer_or_an_adapter(case: Case, capfd: pytest.CaptureFixture[str]) -> None:
    good = (case.model / "tokenizer_config.json").read_text()
    edit(case.model / "tokenizer_config.json", vocab_file="/etc/passwd")
    refused(evaluate(case), capfd, "tokenizer_config.json", "'/etc/passwd'", root=case.root)
    (case.model / "tokenizer_config.json").write_text(good)
    edit(case.model / "config.json", transformers_weights="../text.safetensors")
    refused(evaluate(case), capfd, "names a file of weights itself", root=case.root)
    (case.model / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/somewhere/else"}))
    refused(evaluate(case), capfd, "a model and an adapter", root=case.root)


def test_a_run_file_is_plain_values(case: Case, capfd: pytest.CaptureFixture[str]) -> None:
    mark, file = case.root / "ran", case.root / "run.yaml"
    for text, words in (
        (f"model: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [{mark}]]", "malformed"),
        ("runs: {a: {class_path: case_of_a_stranger.Class}}", "'class_path' would name Python code"),
        ("a: &a [x, x, x, x, x, x, x, x, x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a, *a, *a]\n"
         + "".join(f"{new}: &{new} [{', '.join(['*' + old] * 10)}]\n" for old, new in zip("bcdef", "cdefg", strict=True)), "aliases"),
        ("a: &a [*a]", "aliases"),
        ("- model\n", "no options"),
    ):  # fmt: skip
        file.write_text(text)
        refused(["compare", "--config", str(file)], capfd, str(file), words, root=case.root)
    assert not mark.exists()


# Tokens and the network


def test_a_token_is_never_told_or_written(
    case: Case, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for option in ("model", "data", "eval"):
        error = refused(case.arguments(**{option: f"org/{TOKEN}"}), capfd, f"--{option}", "HF_TOKEN", root=case.root)
        assert TOKEN not in error
    for line in (["evaluate", "--model", f"https://me:{TOKEN}@hub/x", "--data", "d"], ["prune", f"--token={TOKEN}"],
                 ["prune", "--model", f"./{TOKEN}/x"]):  # fmt: skip
        cli.main(line)
        assert TOKEN not in "".join(capfd.readouterr())
    secret = "a-token-of-another-shape"
    monkeypatch.setenv("HF_TOKEN", secret)
    assert cli.main(["inspect", "--model", f"./{secret}"]) == 2
    assert secret not in capfd.readouterr().err
    assert hide_secrets(f"url https://name:{secret}@host/x {TOKEN} end") == "url https://***@host/x *** end"
    report = run(capfd, *case.arguments(), "--criterion", "magnitude")
    written = b"".join(path.read_bytes() for path in case.output.iterdir())
    assert secret.encode() not in written
    assert secret not in json.dumps(report)


def test_offline_nothing_is_asked_of_the_network(
    case: Case, no_network: list[object], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(OSError, match="no network"):  # the control
        socket.create_connection(("localhost", 9))
    no_network.clear()
    refused(case.arguments(model="org/name"), capfd, "offline", root=case.root)
    refused(case.arguments(data="org/name"), capfd, "HF_HUB_OFFLINE", root=case.root)
    run(capfd, *case.arguments(), "--criterion", "magnitude")
    run(capfd, *evaluate(case))
    assert no_network == []


def test_the_run_file_that_is_written_is_plain_values_too(case: Case, capfd: pytest.CaptureFixture[str]) -> None:
    run(capfd, *case.arguments(), "--criterion", "magnitude")
    values = yaml.safe_load((case.output / "run.yaml").read_text(encoding="utf-8"))
    assert all(value is None or isinstance(value, str | int | float | bool) for value in values.values())
