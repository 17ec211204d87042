"""Fine-tuning without pruning, other kinds of data, and a real model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from loraprune import pipeline
from loraprune.config.training import FinetuneConfig, PruneConfig
from tests.pipeline.cases import (
    FILES,
    SHORT,
    check_loads_anywhere,
    count,
    one_step,
    prune_config,
    read_report,
    shapes,
)
from tests.samples import byte_tokenizer


def test_finetune_writes_the_same_kind_of_folder_at_full_size(inputs: Path, tmp_path: Path) -> None:
    paths = {"model": str(inputs / "model"), "data": str(inputs / "text.txt"), "output": str(tmp_path / "out")}
    pipeline.finetune(FinetuneConfig(**(paths | SHORT)))
    folder = tmp_path / "out"
    assert set(FILES) <= {path.name for path in folder.iterdir()}
    assert shapes(folder) == shapes(inputs / "model")
    report = read_report(folder)
    assert report["parameters"]["dense"] == report["parameters"]["pruned"] == count(folder)
    assert report["perplexity"]["pruned"] < report["perplexity"]["dense"]  # it learned something
    assert "ratio_reached" not in report
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.intermediate_size == 64


def test_instructions_are_pruned_on_responses_only(inputs: Path, tmp_path: Path) -> None:
    rows = [{"instruction": f"say {n}", "response": f"the number {n}"} for n in range(60)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = pipeline.prune(prune_config(inputs, tmp_path / "out", data=str(tmp_path / "a.jsonl"), length=64, steps=3))
    protocol = report.values["training_data"]
    assert protocol["format"] == "instruction"
    assert 0 < protocol["targets"] < 0.7 * protocol["tokens"]


def test_tokenizer_of_the_model_comes_along(pruned: Path) -> None:
    text = "Once upon a time"
    saved = json.loads((pruned / "tokenizer.json").read_text(encoding="utf-8"))
    assert saved["model"]["vocab"] == json.loads(byte_tokenizer().backend_tokenizer.to_str())["model"]["vocab"]
    assert check_loads_anywhere(pruned)["cached"][: len(text) + 1] == byte_tokenizer()(text)["input_ids"]


def test_real_model_is_pruned_to_half_and_still_tells_stories(shared: Path, tmp_path: Path) -> None:
    dense = shared / "models" / "llama-stories-260k"
    config = PruneConfig(
        model=str(dense), data=str(shared / "data" / "text" / "tinystories" / "valid.jsonl"),
        output=str(tmp_path / "out"), ratio=0.5, steps=12, batch=4, length=128, lr=2e-3, device="cpu",
    )  # fmt: skip
    report = pipeline.prune(config).values
    reached = 1 - count(tmp_path / "out", prunable=True) / count(dense, prunable=True)
    assert report["ratio_reached"] == pytest.approx(reached, abs=1e-12)
    assert abs(reached - 0.5) <= one_step(tmp_path / "out", dense)
    assert report["perplexity"]["dense"] < 6.5
    assert report["perplexity"]["pruned"] < 512 / 2  # guessing among 512 tokens would give 512
    check_loads_anywhere(tmp_path / "out")
