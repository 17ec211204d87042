"""Folders in safetensors: for serving engines, with 8-bit weights, and their cards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from loraprune.errors import CheckpointError
from loraprune.export import serving
from loraprune.models.loading import from_pretrained
from loraprune.reporting.card import split_card
from tests.export.cases import exported
from tests.tiny import logits, relative


def test_a_layerwise_folder_tells_engines_every_layers_widths(layerwise: Path, tmp_path: Path) -> None:
    values = exported(layerwise, tmp_path / "out", "safetensors", quantization="f32")
    assert values["verification"]["source_vs_exported"] < 1e-5
    assert "neither vLLM nor SGLang was run" in values["verified_by"]
    assert "--trust-remote-code --model-impl transformers" in values["load"]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    units = config["loraprune"]["units"]
    for layer in range(2):
        heads = units[f"model.layers.{layer}.self_attn"]
        assert config["per_layer_config"][str(layer)] == {
            "num_attention_heads": 2 * heads, "num_key_value_heads": heads, "intermediate_size": units[f"model.layers.{layer}.mlp"],
        }  # fmt: skip
    assert {"AutoModel", "AutoConfig"} <= config["auto_map"].keys()
    loaded = from_pretrained(tmp_path / "out")
    resolved = getattr(loaded.config, "per_layer_config", None)
    if hasattr(loaded.config, "is_heterogeneous"):  # transformers 5.14 and newer
        assert resolved is not None
        assert resolved[1].intermediate_size == units["model.layers.1.mlp"]
    ids = torch.randint(3, 200, (2, 12))
    assert relative(logits(from_pretrained(layerwise), ids), logits(loaded, ids)) < 1e-5


def test_a_stock_folder_has_16_bits_and_explicit_heads(uniform: Path, tmp_path: Path) -> None:
    values = exported(uniform, tmp_path / "out", "safetensors", tensor_parallel=2)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["dtype"], config["head_dim"], config["num_key_value_heads"]) == ("bfloat16", 8, 2)
    assert values["tensor_parallel_sizes"] == [1, 2, 4]  # 4 query heads; 2 key-value heads are repeated
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.bfloat16


def test_a_folder_without_its_code_is_not_handed_out(
    layerwise: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = serving.save_tensors

    def careless(*arguments: object, **options: object) -> None:
        plain(*arguments, **options)  # type: ignore[arg-type]
        (tmp_path / "out.partial" / "result" / "modeling_loraprune.py").unlink()

    monkeypatch.setattr(serving, "save_tensors", careless)
    with pytest.raises(CheckpointError, match=r"modeling_loraprune.py is missing"):
        exported(layerwise, tmp_path / "out", "safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore")  # of torchao itself, when it is imported
def test_torchao_weights_load_in_plain_transformers(uniform: Path, tmp_path: Path) -> None:
    pytest.importorskip("torchao", reason="the extra export is not installed")
    values = exported(uniform, tmp_path / "out", "torchao")
    assert values["verification"]["rounded_vs_reloaded"] == 0
    assert 0 < values["verification"]["source_vs_rounded"] < 0.2
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", device_map="cpu")
    assert type(loaded.model.layers[0].mlp.up_proj.weight).__name__ != "Parameter"
    assert values["quantization"] == "int8"
    about, text = split_card(tmp_path / "out" / "README.md")
    assert about["tags"] == ["loraprune", "pruned", "torchao", "int8"]
    assert "Verified by transformers with torchao" in text
