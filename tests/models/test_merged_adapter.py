"""BASE+ADAPTER is the base with PEFT's adapter merged: it is pruned and evaluated as the merged model would be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from loraprune import cli
from loraprune.errors import CheckpointError
from loraprune.models.loading import load_model
from loraprune.models.opening import load_tokenizer
from tests.cli.cases import refused
from tests.samples import byte_tokenizer, save_inputs, tiny_llama

IDS = torch.arange(40).reshape(2, 20)
CPU = torch.device("cpu")


def logits(model: PreTrainedModel | PeftModel) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits  # type: ignore[no-any-return]


def save_adapter(folder: Path, *, template: str | None = None, **options: Any) -> Path:
    """Write an adapter of the tiny Llama whose factors are all random, as after training."""
    config = LoraConfig(
        r=4, lora_alpha=16, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM", **options
    )  # type: ignore[arg-type]
    adapted = get_peft_model(tiny_llama(), config)
    torch.manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            parameter.data.normal_(std=0.2)
    adapted.save_pretrained(folder)
    if template:
        tokenizer = byte_tokenizer()
        tokenizer.chat_template = template
        tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    save_inputs(tmp_path)
    return tmp_path


def both(root: Path) -> str:
    return f"{root / 'model'}+{root / 'adapter'}"


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"modules_to_save": ["lm_head"]}, {"use_dora": True}])
def test_the_merged_model_is_the_one_that_peft_runs(options: dict[str, Any], root: Path) -> None:
    save_adapter(root / "adapter", **options)
    base = AutoModelForCausalLM.from_pretrained(root / "model")
    dense = logits(base)
    expected = logits(PeftModel.from_pretrained(base, root / "adapter"))
    loaded = load_model(both(root), device=CPU)
    torch.testing.assert_close(logits(loaded), expected)
    assert not torch.allclose(expected, dense, atol=1e-2)  # the control: the adapter matters
    assert not [name for name, _ in loaded.named_parameters() if "lora" in name]
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_the_tokenizer_is_the_one_that_the_adapter_was_trained_with(root: Path) -> None:
    save_adapter(root / "adapter")
    assert load_tokenizer(both(root)).chat_template is None
    save_adapter(root / "adapter", template="{{ messages }}")
    assert load_tokenizer(both(root)).chat_template == "{{ messages }}"


def run(command: str, model: str, root: Path, *more: str) -> list[str]:
    output = ["--output", str(root / "out")] if command in ("prune", "finetune") else []
    data = [] if command == "plan" else ["--data", str(root / "text.txt"), "--length", "32", "--batch", "2"]
    return [command, "--model", model, *data, *output, *more]


TRAINED = ("--steps", "1", "--html", "false", "--device", "cpu", "--calibration", "512", "--json")


def test_what_was_tuned_is_pruned_and_evaluated(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    save_adapter(root / "adapter")

    def answer(*arguments: str) -> dict[str, dict[str, dict[str, float]]]:
        assert cli.main(list(arguments)) == 0
        return json.loads(capfd.readouterr().out)  # type: ignore[no-any-return]

    pruned = answer(*run("prune", both(root), root, "--ratio", "0.2", *TRAINED))
    PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(root / "model"), root / "adapter"
    ).merge_and_unload().save_pretrained(root / "merged")  # type: ignore[operator]
    byte_tokenizer().save_pretrained(root / "merged")
    whole = answer(*run("evaluate", both(root), root, "--against", str(root / "merged"), "--device", "cpu", "--json"))
    values = [one["perplexity"] for one in whole["models"].values()]
    assert values[0] == pytest.approx(values[1], rel=1e-5)
    assert pruned["parameters"]["pruned"] < pruned["parameters"]["dense"]  # type: ignore[operator]
    config = json.loads((root / "out" / "config.json").read_text())
    assert config["intermediate_size"] < 64
    planned = answer(*run("plan", both(root), root, "--ratio", "0.2", "--json"))
    assert planned["parameters"]["dense"] == pruned["parameters"]["dense"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("{0}/adapter", ["--model {0}/model+{0}/adapter"]),
        ("{0}/model+{0}/none", ["after the + is not a folder"]), ("{0}/none+{0}/adapter", ["before the +: no such folder"]),
        ("{0}/model+{0}/model", ["no adapter_config.json"]), ("{0}/model+{0}/prompt", ["'PROMPT_TUNING'", "only LORA"]),
        ("{0}/model+{0}/pickled", ["no adapter_model.safetensors", "only safetensors"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("command", ["prune", "plan", "evaluate"])
def test_what_cannot_be_merged_is_told(
    command: str, name: str, words: list[str], root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    save_adapter(root / "adapter")
    values = json.loads((root / "adapter" / "adapter_config.json").read_text())
    values["base_model_name_or_path"] = str(root / "model")
    (root / "adapter" / "adapter_config.json").write_text(json.dumps(values))
    for other, changes in (("prompt", {"peft_type": "PROMPT_TUNING"}), ("pickled", {})):
        (root / other).mkdir()
        (root / other / "adapter_config.json").write_text(json.dumps(values | changes))
    refused(run(command, name.format(root), root), capfd, *(word.format(root) for word in words), root=root)


def test_an_adapter_of_another_model_is_told(root: Path) -> None:
    adapter = save_adapter(root / "adapter")
    stored = load_file(adapter / "adapter_model.safetensors")
    first = next(iter(stored))
    save_file({name: tensor for name, tensor in stored.items() if name != first}, adapter / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=f"does not fit this base model .it lacks {first}"):
        load_model(both(root), device=CPU)
    save_file(
        stored | {"base_model.model.model.layers.9.x.weight": torch.ones(1)}, adapter / "adapter_model.safetensors"
    )
    with pytest.raises(CheckpointError, match="which the base model lacks"):
        load_model(both(root), device=CPU)
    tiny_llama(hidden_size=48).save_pretrained(root / "model")
    save_file(stored, adapter / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"does not fit this base model .*size mismatch"):
        load_model(both(root), device=CPU)


def test_weights_that_are_merged_are_not_rounded_first(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    save_adapter(root / "adapter")
    refused(
        run("prune", both(root), root, "--quantize", "int8"),
        capfd,
        "--quantize int8",
        "an adapter is merged",
        root=root,
    )
