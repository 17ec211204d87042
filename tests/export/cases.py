"""Small pruned folders to export, with and without widths of their own in every layer, and what every export must leave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from loraprune.config.export import ExportConfig
from loraprune.export.run import export
from loraprune.families import find_groups
from loraprune.models.saving import save_model
from loraprune.pruning.surgery import slice_
from tests.samples import VOCABULARY, byte_tokenizer
from tests.tiny import tiny_model, uneven_plan, uniform_plan


def merging_tokenizer(*, extra: int = 0) -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer that makes one token of "ca", as llama.cpp asks for merges; `extra` is as of `byte_tokenizer`."""
    values = json.loads(byte_tokenizer().backend_tokenizer.to_str())
    values["model"] |= {"vocab": values["model"]["vocab"] | {"ca": 259}, "merges": [["c", "a"]]}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(values)), bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
    fast.add_tokens([f"<extra{number}>" for number in range(extra)])
    return fast


def save_pruned_tiny(
    folder: Path, variant: str = "llama", *, layerwise: bool = False, heads: int = 2, ffn: int = 32
) -> Path:
    """Write a tiny model of a variant, pruned, with a byte-level tokenizer and its plan."""
    model = tiny_model(variant)
    model.resize_token_embeddings(VOCABULARY, mean_resizing=False)
    config, groups = model.config.__class__.from_dict(model.config.to_dict()), find_groups(model.config)
    plan = uneven_plan(groups) if layerwise else uniform_plan(groups, heads, ffn)
    slice_(model, groups, plan.kept)
    counts = {name: len(kept) for name, kept in plan.kept.items()}
    save_model(model, folder, config=config, groups=groups, counts=counts)
    merging_tokenizer().save_pretrained(folder)
    (folder / "plan.json").write_text(plan.to_json(), encoding="utf-8")
    return folder


def exported(folder: Path, output: Path, name: str, **options: Any) -> dict[str, Any]:
    """Export a folder; return its export.json, which is what the command returns."""
    values = export(ExportConfig(model=str(folder), output=str(output), format=name, **options)).values
    written: dict[str, Any] = json.loads((output / "export.json").read_text())
    assert values == written | {"output": str(output)}
    assert (output / "README.md").read_text().startswith("---\n")
    return written
