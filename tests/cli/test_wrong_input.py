"""One clear line for everything that can be wrong with models, data, targets and outputs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import MambaConfig, MambaForCausalLM

from tests.cli.cases import Case, refused
from tests.samples import byte_tokenizer

# Wrong models


def edit_config(case: Case, **changes: object) -> None:
    path = case.model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(case: Case, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = case.model / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def make_mamba(case: Case) -> None:
    shutil.rmtree(case.model)
    MambaForCausalLM(MambaConfig(vocab_size=264, hidden_size=8, num_hidden_layers=1)).save_pretrained(case.model)
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
    "unsupported family": (make_mamba, ["mamba", "llama", "add-a-family"]),
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
        if name != "short.txt":  # few tokens to evaluate on are still some
            refused(case.arguments(eval=str(path)), capfd, str(path), *words, root=case.root)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ratio": "0.99"}, ["--ratio 0.99", "at most 0."]),
        ({"parameters": "10"}, ["--parameters 10", "never pruned"]),
        ({"size": "1%"}, ["--size 1%", "never pruned"]),
        ({"size": "120%"}, ["--size 1.2", "such as 80%"]),
        ({"size": "most"}, ["--size most", "a fraction or a percentage"]),
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
    where = "step" if command == "finetune" else "an activation is NaN"  # seen when the first removal is made up for
    refused([*case.arguments(command), "--lr", "1e30"], capfd, where, "--lr", root=case.root)


def test_missing_device_is_refused(case: Case, capfd: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    refused([*case.arguments(), "--device", "cuda"], capfd, "--device cuda", "--device cpu", root=case.root)
