"""A GGUF file holds the model: read back tensor by tensor, and run by llama.cpp where it is installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from loraprune.commands.tables.results import export as print_export
from loraprune.errors import NumericsError, VerificationError
from loraprune.export.gguf import llamacpp
from loraprune.export.gguf.architecture import ARCHITECTURES, rope_factors
from loraprune.export.gguf.llamacpp import LlamaCpp, llamacpp_version
from loraprune.export.gguf.tensors import Layout
from loraprune.export.run import Export
from loraprune.models.loading import from_pretrained
from loraprune.models.opening import load_tokenizer
from tests.export.cases import exported, save_pruned_tiny

gguf = pytest.importorskip("gguf", reason="the extra export is not installed")
needs_llamacpp = pytest.mark.skipif(llamacpp_version() is None, reason="llama-cpp-python is not installed")


def head_of(file: Path) -> dict[str, Any]:
    """Return all keys of a file with their values."""
    return {name: field.contents() for name, field in gguf.GGUFReader(file).fields.items()}


def check(values: dict[str, Any]) -> None:
    found = values["verification"]
    assert found["largest_rounding"] < 1e-6
    assert found["source_vs_rounded"] < 1e-5
    if llamacpp_version():
        assert found["rounded_vs_llama_cpp"] < 1e-3
        assert "logits" in values["verified_by"]
    else:
        assert "llama.cpp did not run it" in values["verified_by"]


VARIANTS = ("llama-tied", "llama-attention_bias", "mistral", "qwen3", "gemma", "granite")


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_uniform_model_has_its_stock_architecture(variant: str, tmp_path: Path) -> None:
    source = save_pruned_tiny(tmp_path / "source", variant)
    values = exported(source, tmp_path / "out", "gguf", quantization="f32")
    check(values)
    architecture = ARCHITECTURES[variant.partition("-")[0]].name
    assert values["architecture"] == architecture
    head = head_of(tmp_path / "out" / "model-f32.gguf")
    assert head[f"{architecture}.attention.head_count"] == 4
    assert head[f"{architecture}.feed_forward_length"] == 32


@pytest.mark.parametrize("variant", ["llama", "qwen2"])
def test_layers_of_their_own_widths_are_deci(variant: str, tmp_path: Path) -> None:
    source = save_pruned_tiny(tmp_path / "source", variant, layerwise=True)
    values = exported(source, tmp_path / "out", "gguf", quantization="f32")
    check(values)
    assert values["architecture"] == "deci"
    units = json.loads((source / "config.json").read_text())["loraprune"]["units"]
    head = head_of(tmp_path / "out" / "model-f32.gguf")
    assert head["deci.attention.head_count_kv"] == [units[f"model.layers.{n}.self_attn"] for n in range(2)]
    assert head["deci.feed_forward_length"] == [units[f"model.layers.{n}.mlp"] for n in range(2)]
    assert head["deci.rope.dimension_count"] == head["deci.attention.key_length"] == 8


@pytest.mark.parametrize(("heads", "architecture"), [(4, "qwen2"), (2, "deci")])
def test_a_qwen2_with_fewer_heads_is_no_qwen2_of_llama_cpp(heads: int, architecture: str, tmp_path: Path) -> None:
    """Its projections have the hidden size there, whatever the head count."""
    values = exported(
        save_pruned_tiny(tmp_path / "source", "qwen2", heads=heads), tmp_path / "out", "gguf", quantization="f32"
    )
    check(values)
    assert values["architecture"] == architecture


def test_heads_that_do_not_divide_the_hidden_size(tmp_path: Path) -> None:
    source = save_pruned_tiny(tmp_path / "source", heads=3)
    assert json.loads((source / "config.json").read_text())["model_type"] == "mistral"
    check(exported(source, tmp_path / "out", "gguf", quantization="f32"))


@needs_llamacpp
def test_llama_cpp_writes_the_same_tokens(layerwise: Path, tmp_path: Path) -> None:
    exported(layerwise, tmp_path / "out", "gguf", quantization="f32")
    model, prompt = from_pretrained(layerwise), load_tokenizer(str(layerwise))("a cat ran")["input_ids"]
    ids = torch.tensor([prompt])
    settings: dict[str, Any] = {"do_sample": False, "min_new_tokens": 16, "max_new_tokens": 16, "pad_token_id": 2}
    expected = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)  # type: ignore[operator]
    engine = LlamaCpp(tmp_path / "out" / "model-f32.gguf", context=64)
    assert engine.generate(prompt, new_tokens=16) == expected[0, len(prompt) :].tolist()


@pytest.mark.parametrize("quantization", ["f16", "q8_0", "q4_0"])
def test_rows_that_fill_no_block_keep_16_bits(
    quantization: str, layerwise: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = exported(layerwise, tmp_path / "out", "gguf", quantization=quantization)
    assert values["verification"]["largest_rounding"] > 0
    types = {
        one.name: one.tensor_type.name
        for one in gguf.GGUFReader(tmp_path / "out" / f"model-{quantization}.gguf").tensors
    }
    assert types["blk.0.attn_norm.weight"] == "F32"
    left = values["not_quantized"]
    assert all(types[name] == "F16" for name in left)
    others = [
        kind for name, kind in types.items() if name not in left and "norm" not in name and name.startswith("blk")
    ]
    assert set(others) == {quantization.upper()}
    assert bool(left) == (quantization != "f16")  # columns of ffn_down are no multiple of 32 here
    print_export(Export({"output": "out", "bytes": 1} | values))
    assert ("not quantised" in capsys.readouterr().out) == bool(left)


def test_rows_in_the_wrong_order_are_seen(uniform: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Layout, "leave", lambda self, path, tensor: tensor)
    with pytest.raises(VerificationError, match=r"other weights than the model: .*_proj"):
        exported(uniform, tmp_path / "out", "gguf", quantization="f32")
    assert not (tmp_path / "out").exists()


def test_a_crash_of_llama_cpp_is_an_error_of_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "model-q8_0.gguf"
    monkeypatch.setattr(llamacpp, "TRIAL", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    with pytest.raises(
        VerificationError, match=r"crashed with signal 11 when it ran model-q8_0\.gguf; .*--quantization f16"
    ):
        llamacpp.check_runs(file, context=64)
    monkeypatch.setattr(llamacpp, "TRIAL", "raise ValueError")
    llamacpp.check_runs(file, context=64)  # the control: what llama.cpp reports, is reported where the file is read


@needs_llamacpp
def test_llama_cpp_sees_an_order_that_reading_back_does_not(
    uniform: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Why reading back alone is not enough: writer and reader may share a mistake."""
    monkeypatch.setattr(Layout, "_heads", lambda self, path: 0)
    with pytest.raises(VerificationError, match=r"llama.cpp's logits differ"):
        exported(uniform, tmp_path / "out", "gguf", quantization="f32")


def test_a_weight_beyond_16_bits_is_told(uniform: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for file in uniform.iterdir():
        (source / file.name).write_bytes(file.read_bytes())
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = 1e6
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NumericsError, match="beyond its range; use bf16"):
        exported(source, tmp_path / "out", "gguf", quantization="f16")


def test_factors_of_llama3_positions_are_those_of_transformers() -> None:
    rope = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64}  # fmt: skip
    config = LlamaConfig(hidden_size=256, num_attention_heads=4, num_key_value_heads=4, rope_parameters=rope)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 1 / 10000.0 ** (torch.arange(0, 64, 2) / 64)
    factors = rope_factors(config)
    assert factors is not None
    np.testing.assert_allclose(factors, (plain / scaled).numpy(), rtol=1e-5)
    assert min(factors) == 1 < max(factors) == 8
