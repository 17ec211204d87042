"""The command `export`: a pruned model in another format. A format is one function and one line in the table.

Knows nothing about how a format is written.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from loraprune.errors import ConfigError, Findings
from loraprune.inputs import NEEDS, check_model
from loraprune.layerwise.padded import write_padded
from loraprune.loading import load_config, load_model, load_tokenizer, resolve
from loraprune.plan import Plan
from loraprune.registry import Registry
from loraprune.resume.workspace import new_folder
from loraprune.settings import ExportConfig


@dataclass(frozen=True, slots=True)
class Source:
    """A pruned model to write in another format."""

    folder: Path
    model: PreTrainedModel
    """on the CPU in float32"""
    dtype: torch.dtype
    """precision of its file"""


@dataclass(frozen=True, slots=True)
class Export:
    """What was written, ready for JSON."""

    values: dict[str, Any]


Writer = Callable[[Source, Path], dict[str, Any]]
"""writes a source into an empty folder, loads the result, and returns what it found for the report"""


def padded(source: Source, folder: Path) -> dict[str, Any]:
    """Write the dense stock shapes with zeros for removed units."""
    plan = Plan.read(source.folder)
    found = write_padded(source.model, plan, folder, dtype=source.dtype)
    if (source.folder / "tokenizer_config.json").is_file():
        load_tokenizer(str(source.folder)).save_pretrained(folder)
    return {
        "verification": {"source_vs_exported": found},
        "load": "AutoModelForCausalLM.from_pretrained(folder) of plain transformers, without a flag",
    }


formats: Registry[Writer] = Registry("format", ConfigError)
formats.add("padded", padded)


def export(options: ExportConfig) -> Export:
    """Write a pruned model in another format and check it by loading it.

    Raises:
        LoraPruneError: for anything wrong with model or options, or a format that cannot hold it; nothing is written then.
    """
    found = Findings()
    with found.check():
        writer = formats.get(options.format)
    check_model(options.model, NEEDS["export"], found, trust_remote_code=options.trust_remote_code)
    if options.format == "padded":
        with found.check():
            Plan.read(Path(resolve(options.model)))
    found.raise_all()
    with new_folder(Path(options.output), overwrite=options.overwrite) as folder:
        config = load_config(options.model, trust_remote_code=options.trust_remote_code)
        model = load_model(
            options.model, device=torch.device("cpu"), dtype=torch.float32, trust_remote_code=options.trust_remote_code
        )
        dtype = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
        written = writer(Source(Path(resolve(options.model)), model, dtype), folder)
        size = sum(file.stat().st_size for file in folder.iterdir())
        values = {"model": options.model, "format": options.format, "parameters": model.num_parameters(), "bytes": size}
        (folder / "export.json").write_text(json.dumps(values | written, indent=1) + "\n", encoding="utf-8")
    return Export(values | written | {"output": options.output})
