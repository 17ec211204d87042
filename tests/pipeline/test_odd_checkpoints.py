"""Checkpoints that say one thing and hold another: the run ends with the model that was trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from loraprune import pipeline
from loraprune.config.training import FinetuneConfig
from tests.pipeline.cases import SHORT, check_loads_anywhere, prune_config, read_report
from tests.samples import save_inputs, save_tiny

FEW: dict[str, Any] = {"steps": 2, "ratio": 0.3}


def change_config(folder: Path, **changes: object) -> None:
    values = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(values))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Return a folder with a model of tied embeddings and a text."""
    save_inputs(tmp_path)
    save_tiny(tmp_path / "model", tie_word_embeddings=True)
    return tmp_path


def test_embeddings_that_are_said_to_be_tied_and_differ_are_both_kept(place: Path) -> None:
    tensors = load_file(place / "model" / "model.safetensors")
    assert "lm_head.weight" not in tensors
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 0.05
    save_file(tensors, place / "model" / "model.safetensors", metadata={"format": "pt"})
    pipeline.prune(prune_config(place, place / "out", **FEW))
    check_loads_anywhere(place / "out")
    kept = load_file(place / "out" / "model.safetensors")
    assert torch.equal(kept["lm_head.weight"], tensors["lm_head.weight"])
    assert json.loads((place / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    paths = {"model": str(place / "model"), "data": str(place / "text.txt"), "output": str(place / "tuned")}
    pipeline.finetune(FinetuneConfig(**(paths | SHORT | {"steps": 2})))
    assert read_report(place / "tuned")["verification"]["sliced_vs_reloaded"] < 1e-4


def test_embeddings_that_are_tied_stay_tied(place: Path) -> None:
    pipeline.prune(prune_config(place, place / "out", **FEW))
    assert "lm_head.weight" not in load_file(place / "out" / "model.safetensors")
    assert json.loads((place / "out" / "config.json").read_text())["tie_word_embeddings"] is True


@pytest.mark.parametrize("switch", ["output_attentions", "output_hidden_states", "return_dict"])
def test_a_switch_of_what_a_forward_gives_ends_no_run(switch: str, place: Path) -> None:
    change_config(place / "model", **{switch: switch != "return_dict"})
    pipeline.prune(prune_config(place, place / "out", **FEW))
    check_loads_anywhere(place / "out")


def test_a_result_names_no_code_that_it_does_not_hold(place: Path) -> None:
    change_config(
        place / "model", auto_map={"AutoConfig": "configuration_my.My", "AutoModelForCausalLM": "modeling_my.My"}
    )
    settings = json.loads((place / "model" / "tokenizer_config.json").read_text())
    settings["auto_map"] = {"AutoTokenizer": [None, "tokenization_my.My"]}
    (place / "model" / "tokenizer_config.json").write_text(json.dumps(settings))
    pipeline.prune(prune_config(place, place / "out", **FEW))
    for name in ("config.json", "tokenizer_config.json"):
        assert "auto_map" not in json.loads((place / "out" / name).read_text())
    assert AutoModelForCausalLM.from_pretrained(place / "out", trust_remote_code=True)


def test_a_layerwise_result_still_names_its_code(place: Path) -> None:
    pipeline.prune(prune_config(place, place / "out", **FEW, allocation="global"))
    assert "modeling_loraprune" in json.dumps(json.loads((place / "out" / "config.json").read_text())["auto_map"])
    assert (place / "out" / "modeling_loraprune.py").is_file()
