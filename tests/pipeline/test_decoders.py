"""The main job on decoders of other families than Llama's, from a folder to a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

import loraprune
from loraprune import pipeline
from tests.pipeline.cases import prune_config
from tests.samples import byte_tokenizer, write_text
from tests.tiny import COMMON, VARIANTS, model_type


@pytest.mark.parametrize(
    ("variant", "options", "saved_as"),
    [
        ("gpt2", {}, "gpt2"),
        ("gpt2", {"kinds": "all", "compensate": True}, "loraprune_gpt2"),
        ("gpt_neox", {"allocation": "global"}, "loraprune_gpt_neox"),
        ("mixtral", {"criterion": "magnitude"}, "mixtral"),
        ("qwen2_moe", {"criterion": "gate", "kinds": "attention,expert", "ratio": 0.3}, "qwen2_moe"),
    ],
)
def test_a_decoder_is_pruned_saved_and_loaded(
    variant: str, options: dict[str, Any], saved_as: str, tmp_path: Path
) -> None:
    tokenizer = byte_tokenizer()
    values = COMMON | {"num_hidden_layers": 2} | VARIANTS[variant] | {"vocab_size": len(tokenizer)}
    config = CONFIG_MAPPING[model_type(variant)](**values)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    write_text(tmp_path / "text.txt", 60)
    changes = {"ratio": 0.5, "steps": 3} | options
    report = pipeline.prune(prune_config(tmp_path, tmp_path / "out", **changes)).values
    assert report["saved_as"]["model_type"] == saved_as
    assert report["ratio_reached"] == pytest.approx(changes["ratio"], abs=0.06)
    assert report["verification"]["masked_vs_sliced"] < 1e-4
    assert report["verification"]["sliced_vs_reloaded"] < 1e-4
    if not saved_as.startswith("loraprune_"):
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        assert model.num_parameters() == report["parameters"]["pruned"]
    assert loraprune.from_pretrained(tmp_path / "out").num_parameters() == report["parameters"]["pruned"]
