"""Tensors that a model does not take are refused where they make it another model, and named where they do not."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaForCausalLM

from loraprune.errors import LoraPruneError
from loraprune.models.loading import from_pretrained, load_with_head
from tests.evaluation.tasks.cases import save_bert
from tests.samples import save_tiny

LAYER = "model.layers.0.self_attn.q_proj"
Tensors = dict[str, Tensor]


def with_lora(tensors: Tensors) -> None:
    tensors |= {
        f"{LAYER}.lora_A.default.weight": torch.randn(8, 32),
        f"{LAYER}.lora_B.default.weight": torch.randn(32, 8),
    }


def with_scales(tensors: Tensors) -> None:
    for name in [name for name in tensors if "proj" in name]:
        tensors[name] = (tensors[name] * 4).to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = torch.tensor([0.25])


def as_whole_numbers(tensors: Tensors) -> None:
    tensors[f"{LAYER}.weight"] = (tensors[f"{LAYER}.weight"] * 100).to(torch.int8)


def packed(tensors: Tensors) -> None:
    tensors[f"{LAYER}.weight"] = torch.zeros(512, 1, dtype=torch.uint8)


def with_norms(tensors: Tensors) -> None:
    tensors["model.layers.0.self_attn.q_norm.weight"] = torch.ones(8)


def with_value_head(tensors: Tensors) -> None:
    tensors["v_head.summary.weight"] = torch.randn(1, 32)


def with_buffers(tensors: Tensors) -> None:
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    tensors["model.layers.0.self_attn.masked_bias"] = torch.ones(4, 4, dtype=torch.uint8)


def changed(root: Path, change: Callable[[Tensors], None] | None = None, **config: object) -> Path:
    """Write a tiny Llama whose tensors or configuration were changed afterwards."""
    folder = save_tiny(root / "m")
    tensors = load_file(folder / "model.safetensors")
    if change:
        change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    values = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize(
    ("change", "words"), [(with_lora, "not merged"), (with_scales, "are quantised"), (with_norms, "q_norm")]
)
def test_tensors_that_the_model_needs_are_refused(
    change: Callable[[Tensors], None], words: str, tmp_path: Path
) -> None:
    with pytest.raises(LoraPruneError, match=f"--model .*{words}"):
        from_pretrained(changed(tmp_path, change))


def test_more_layers_than_the_configuration_says_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LoraPruneError, match=r"layers\.1\..*config\.json belongs to another model"):
        from_pretrained(changed(tmp_path, num_hidden_layers=1))


@pytest.mark.parametrize(("change", "named"), [(with_value_head, True), (with_buffers, False), (None, False)])
def test_what_other_heads_use_is_left_out_and_named(
    change: Callable[[Tensors], None] | None, named: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = changed(tmp_path, change)
    with caplog.at_level(logging.WARNING, logger="loraprune"):
        models = [from_pretrained(folder) for _ in range(2)]
    expected = {name for name, _ in LlamaForCausalLM(models[0].config).named_parameters()}
    assert [{name for name, _ in model.named_parameters()} for model in models] == [expected] * 2
    told = [record.message for record in caplog.records]
    assert sum("v_head.summary.weight" in line for line in told) == int(named)  # once, though it was loaded twice


def test_an_encoder_changes_its_head_without_an_error(tmp_path: Path) -> None:
    save_bert(tmp_path / "m")
    head = "AutoModelForSequenceClassification"
    model, new = load_with_head(
        str(tmp_path / "m"), head, device=torch.device("cpu"), new=lambda name: "classifier" in name or "pooler" in name
    )
    assert type(model).__name__ == "BertForSequenceClassification"
    assert "classifier" in new
