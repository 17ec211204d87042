"""`padded`: the dense stock shapes with zeros for removed units, for loaders that know no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from loraprune.config.export import ExportConfig
from loraprune.export.base import Format, Source, formats, tokenizer_of
from loraprune.export.padding import write_padded
from loraprune.models.loading import resolve
from loraprune.plan import Plan


def write(source: Source, folder: Path) -> dict[str, Any]:
    """Write the dense stock shapes with zeros for removed units."""
    found = write_padded(source.model, Plan.read(source.folder), folder, dtype=source.dtype)
    if source.has_tokenizer:
        tokenizer_of(source).save_pretrained(folder)
    return {
        "verification": {"source_vs_exported": found},
        "verified_by": "plain transformers",
        "load": "AutoModelForCausalLM.from_pretrained(folder) of plain transformers, without a flag",
    }


def check(config: PreTrainedConfig, options: ExportConfig) -> None:
    """Raise a CheckpointError if the folder has no plan."""
    Plan.read(Path(resolve(options.model)))


formats.add("padded", Format(write, check))
