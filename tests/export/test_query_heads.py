"""Models with fewer query heads for each key-value head leave in every format, layer by layer too."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from loraprune.errors import CheckpointError
from loraprune.export.padded import write_padded
from loraprune.models.loading import from_pretrained
from loraprune.plan import Plan
from tests.export.cases import exported, merging_tokenizer
from tests.export.test_gguf import check, gguf, head_of
from tests.export.test_graphs import needs_onnx
from tests.families.promises import SAME
from tests.families.test_query_heads import cut, plan_of, single_heads, two_key_values
from tests.samples import VOCABULARY
from tests.tiny import logits, relative, tokens


def save(folder: Path, variant: str, each: int | list[int]) -> Path:
    """Write a tiny model with `each` of four query heads for each of two key-value heads, a tokenizer and its plan."""
    model = two_key_values(variant)
    model.resize_token_embeddings(VOCABULARY, mean_resizing=False)
    groups = single_heads(model.config)
    plan = plan_of(groups, each=each)
    cut(model, folder, plan, groups)
    merging_tokenizer().save_pretrained(folder)
    (folder / "plan.json").write_text(plan.to_json(), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("variant", "each", "architecture", "heads"),
    [("llama-tied", 2, "llama", 4), ("gemma", 1, "gemma", 2), ("llama", [1, 3], "deci", [2, 6])],
)
def test_gguf_states_their_number(
    variant: str, each: int | list[int], architecture: str, heads: int | list[int], tmp_path: Path
) -> None:
    assert gguf
    values = exported(save(tmp_path / "source", variant, each), tmp_path / "out", "gguf", quantization="f32")
    check(values)
    assert values["architecture"] == architecture
    head = head_of(tmp_path / "out" / "model-f32.gguf")
    assert head[f"{architecture}.attention.head_count"] == heads
    found = head[f"{architecture}.attention.head_count_kv"]
    assert found == ([2, 2] if isinstance(each, list) else 2)


@needs_onnx
def test_onnxruntime_computes_the_same(tmp_path: Path) -> None:
    values = exported(save(tmp_path / "source", "gemma3_text", 2), tmp_path / "out", "onnx")
    assert values["verification"]["source_vs_exported"] < 1e-5


@pytest.mark.parametrize("each", [1, 2, [1, 3]])
def test_padding_brings_them_back_as_zeros(each: int | list[int], tmp_path: Path) -> None:
    model = from_pretrained(save(tmp_path / "pruned", "llama", each))
    plan = Plan.read(tmp_path / "pruned")
    assert plan.parts
    assert write_padded(model, plan, tmp_path / "padded", dtype=torch.float32) < SAME  # type: ignore[arg-type]
    padded = AutoModelForCausalLM.from_pretrained(tmp_path / "padded")
    assert (padded.config.num_attention_heads, padded.config.num_key_value_heads) == (8, 2)
    assert relative(logits(model, tokens()), logits(padded, tokens())) < SAME


def test_without_its_parts_a_plan_would_mean_key_value_heads(tmp_path: Path) -> None:
    """The control of what a plan says of parts: of as many heads of either kind, padding would give another model."""
    model = from_pretrained(save(tmp_path / "pruned", "llama", 1))
    plan = Plan.read(tmp_path / "pruned")
    write_padded(model, Plan(plan.units, plan.kept), tmp_path / "other", dtype=torch.float32)  # type: ignore[arg-type]
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "other").config.num_key_value_heads == 8
    two = from_pretrained(save(tmp_path / "two", "llama", 2))
    plan = Plan.read(tmp_path / "two")
    with pytest.raises(CheckpointError, match="belongs to another model"):
        write_padded(two, Plan(plan.units, plan.kept), tmp_path / "none", dtype=torch.float32)  # type: ignore[arg-type]
