"""BASE+ADAPTER and GGUF files in every command: each does its work on the merged or read model, or refuses in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from loraprune import cli
from loraprune.models.loading import load_model
from tests.cli.cases import refused, run
from tests.evaluation.tasks.cases import reviews, save_bert, write_csv
from tests.export.cases import merging_tokenizer
from tests.models.test_merged_adapter import CPU, logits, save_adapter
from tests.samples import save_inputs

pytest.importorskip("gguf")

SHORT = ["--length", "32", "--batch", "2", "--device", "cpu"]
WORK: dict[str, list[str]] = {
    "inspect": [],
    "plan": ["--ratio", "0.2"],
    "benchmark": ["--batches", "[1]", "--length", "8", "--tokens", "2", "--repeats", "1", "--device", "cpu"],
    "evaluate": ["--data", "{0}/text.txt", "--rows", "4", *SHORT],
    "finetune": ["--data", "{0}/text.txt", "--output", "{0}/out", "--steps", "1", "--html", "false", *SHORT],
    "export": ["--format", "safetensors", "--output", "{0}/out"],
}
"""command -> options with which it does its work"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made")
    save_inputs(root)
    merging_tokenizer().save_pretrained(root / "model")
    save_adapter(root / "adapter")
    options = ("--format", "gguf", "--quantization", "f32", "--output", str(root / "gguf"))
    assert cli.main(["export", "--model", str(root / "model"), *options]) == 0
    return root


@pytest.fixture
def forms(made: Path, tmp_path: Path) -> dict[str, str]:
    for name in ("model", "adapter", "text.txt", "gguf"):
        (tmp_path / name).symlink_to(made / name)
    return {
        "adapter": f"{tmp_path / 'model'}+{tmp_path / 'adapter'}",
        "gguf": str(next((tmp_path / "gguf").glob("*.gguf"))),
    }


@pytest.mark.parametrize("form", ["adapter", "gguf"])
@pytest.mark.parametrize("command", WORK)
def test_every_command_does_its_work(
    command: str, form: str, forms: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run(capfd, command, "--model", forms[form], *(part.format(tmp_path) for part in WORK[command]))
    if command == "export":
        given = load_model(forms[form], device=CPU)
        torch.testing.assert_close(
            logits(load_model(str(tmp_path / "out"), device=CPU)).float(), logits(given), atol=0.05, rtol=0
        )
    (tmp_path / "out").rename(tmp_path / "done") if (tmp_path / "out").exists() else None
    wrong = [command, "--model", f"{forms[form]}.none", *(part.format(tmp_path) for part in WORK[command])]
    refused(wrong, capfd, "--model", ".none", root=tmp_path)


@pytest.mark.parametrize("form", ["adapter", "gguf"])
def test_8_bit_weights_are_those_of_the_model_that_was_named(
    form: str, forms: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torchao")
    run(capfd, "export", "--model", forms[form], "--format", "torchao", "--output", str(tmp_path / "out"))
    rounded = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out"))
    off = (rounded - logits(load_model(forms[form], device=CPU))).abs().max()
    assert off < 0.05
    dense = (rounded - logits(load_model(str(tmp_path / "model"), device=CPU))).abs().max()
    assert bool(dense > 0.2) == (form == "adapter")  # the control: without the adapter it is another model


def test_a_gguf_file_is_written_as_one_again(
    forms: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run(capfd, "export", "--model", forms["gguf"], "--format", "gguf", "--output", str(tmp_path / "out"))
    assert list((tmp_path / "out").glob("*.gguf"))


@pytest.mark.parametrize("form", ["adapter", "gguf"])
def test_what_needs_a_folder_of_a_run_is_refused(
    form: str, forms: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = forms[form]
    padded = ["export", "--model", model, "--format", "padded", "--output", str(tmp_path / "out")]
    refused(padded, capfd, "no plan.json", root=tmp_path)
    refused(["report", model], capfd, "no report.json", root=tmp_path)
    refused(["push", model, "--repo", "a/b"], capfd, "not a folder written by loraprune", root=tmp_path)
    evaluate = ["evaluate", "--model", model, "--data", str(tmp_path / "text.txt"), "--record"]
    refused(evaluate, capfd, "--record", root=tmp_path)


def save_head(folder: Path, base: Path, **options: Any) -> Path:
    model: Any = AutoModelForSequenceClassification.from_pretrained(base, **options)
    get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query"])).save_pretrained(str(folder))
    return folder


@pytest.mark.parametrize("command", ["prune", "evaluate", "benchmark", "export", "inspect"])
def test_a_head_that_only_the_adapter_has_is_refused(
    command: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = str(write_csv(tmp_path / "a.csv", reviews(30)))
    bare = save_bert(tmp_path / "bare")
    options = {
        "prune": ["--data", data, "--output", str(tmp_path / "out")],
        "evaluate": ["--data", data],
        "export": ["--format", "onnx", "--output", str(tmp_path / "out")],
    }.get(command, [])
    name = f"{bare}+{save_head(tmp_path / 'a', bare, num_labels=2)}"
    refused([command, "--model", name, *options], capfd, "brings a head", "merge_and_unload", root=tmp_path)
    if command == "evaluate":  # the control: a base that has the head
        headed = save_bert(tmp_path / "headed")
        named = {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}}
        AutoModelForSequenceClassification.from_pretrained(bare, **named).save_pretrained(headed)
        assert cli.main([command, "--model", f"{headed}+{save_head(tmp_path / 'b', headed)}", *options]) == 0
