"""A GGUF file is read as the model that it was written from, and pruned."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from loraprune import cli
from loraprune.models.loading import load_model
from loraprune.models.opening import load_config, load_tokenizer
from tests.cli.cases import refused
from tests.export.cases import merging_tokenizer
from tests.models.test_merged_adapter import CPU, TRAINED, logits, run
from tests.samples import save_inputs

pytest.importorskip("gguf")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    save_inputs(tmp_path)
    merging_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path


@pytest.fixture
def gguf(root: Path, capfd: pytest.CaptureFixture[str]) -> Path:
    options = ("--format", "gguf", "--quantization", "f32", "--output", str(root / "exported"))
    assert cli.main(["export", "--model", str(root / "model"), *options]) == 0
    capfd.readouterr()
    return next((root / "exported").glob("*.gguf"))


def test_a_gguf_file_is_the_model_that_it_was_written_from(gguf: Path, root: Path) -> None:
    assert load_config(str(gguf)).model_type == "llama"
    expected = logits(AutoModelForCausalLM.from_pretrained(root / "model"))
    torch.testing.assert_close(logits(load_model(str(gguf), device=CPU)), expected)
    text = "[0001] some words."
    assert load_tokenizer(str(gguf))(text)["input_ids"] == merging_tokenizer()(text)["input_ids"]


def test_a_gguf_file_is_pruned(gguf: Path, root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(run("prune", str(gguf), root, "--ratio", "0.2", *TRAINED)) == 0
    assert json.loads((root / "out" / "config.json").read_text())["intermediate_size"] < 64
    capfd.readouterr()
    assert cli.main(["plan", "--model", str(gguf), "--ratio", "0.2"]) == 0
    assert cli.main(run("evaluate", str(gguf), root, "--device", "cpu")) == 0


def test_a_file_that_is_no_whole_gguf_is_told(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (root / "m.gguf").write_bytes(b"GGUF")
    refused(run("prune", str(root / "m.gguf"), root), capfd, f"--model {root / 'm.gguf'}", root=root)
