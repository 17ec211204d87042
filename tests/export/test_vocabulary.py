"""A model with fewer tokens as GGUF and as ONNX: the same texts have the same tokens and logits."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from loraprune.pipeline import prune
from tests.export.cases import exported
from tests.models.vocabulary.trained import CORPUS, save_inputs
from tests.pipeline.cases import prune_config

OTHER = "Ωμέγα, 42 unquestionably\n  other texts"


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder whose vocabulary was cut and whose units were pruned."""
    root = save_inputs(tmp_path_factory.mktemp("vocabulary"))
    prune(prune_config(root, root / "cut", vocabulary="data", steps=2))
    return root / "cut"


def logits(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(torch.tensor([ids])).logits
    return found


def test_a_gguf_file_holds_the_smaller_vocabulary(cut: Path, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="the extra export is not installed")
    exported(cut, tmp_path / "out", "gguf", quantization="f32")
    source, before = AutoModelForCausalLM.from_pretrained(cut), AutoTokenizer.from_pretrained(cut)
    fields = gguf.GGUFReader(tmp_path / "out" / "model-f32.gguf").fields
    head = {name: field.contents() for name, field in fields.items()}
    tokens = head["tokenizer.ggml.tokens"]
    assert tokens == before.convert_ids_to_tokens(range(len(before)))
    assert head["llama.vocab_size"] == len(tokens) == source.config.vocab_size
    for left, right in (merge.split(" ") for merge in head["tokenizer.ggml.merges"]):
        assert {left, right, left + right} <= set(tokens)
    assert head["tokenizer.chat_template"] == before.chat_template
    for name in ("bos", "eos", "padding"):
        short = name.removesuffix("ding")
        assert head[f"tokenizer.ggml.{name}_token_id"] == getattr(before, f"{short}_token_id")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", gguf_file="model-f32.gguf")
    after = AutoTokenizer.from_pretrained(tmp_path / "out", gguf_file="model-f32.gguf")
    for text in (CORPUS[0], OTHER):
        ids = before(text, add_special_tokens=False)["input_ids"]
        assert after(text, add_special_tokens=False)["input_ids"] == ids
        torch.testing.assert_close(logits(model, ids), logits(source, ids), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits(model, ids), logits(source, ids[::-1]), rtol=1e-4, atol=1e-4)  # control


@pytest.mark.skipif(find_spec("onnxruntime") is None, reason="the extra export is not installed")
def test_onnxruntime_computes_the_logits_of_the_kept_tokens(cut: Path, tmp_path: Path) -> None:
    from loraprune.export.onnx_session import Session

    values = exported(cut, tmp_path / "out", "onnx")
    assert values["verification"]["source_vs_exported"] < 1e-4
    source, tokenizer = AutoModelForCausalLM.from_pretrained(cut), AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = np.array([tokenizer(CORPUS[0])["input_ids"]])
    session = Session(tmp_path / "out" / "model.onnx")
    found, _ = session.step(ids, np.ones_like(ids), session.empty_cache(1))
    assert found.shape == (1, ids.shape[1], len(tokenizer))
    torch.testing.assert_close(torch.from_numpy(found), logits(source, ids[0].tolist()), rtol=1e-4, atol=1e-4)
    assert not np.allclose(found[:, :, ::-1], logits(source, ids[0].tolist()), rtol=1e-4, atol=1e-4)  # control
