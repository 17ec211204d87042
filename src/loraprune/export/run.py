"""The command `export`: check everything, load the model, write and verify the format, record the results.

Knows nothing about how a format is written.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from loraprune.config.export import ExportConfig
from loraprune.errors import Findings
from loraprune.export import formats
from loraprune.export.base import Format, Source, check_installed, choose_quantization
from loraprune.export.card import write_card
from loraprune.models.loading import load_model
from loraprune.models.opening import resolve
from loraprune.preflight import NEEDS, check_data, check_model
from loraprune.runtime.workspace import new_folder


@dataclass(frozen=True, slots=True)
class Export:
    """What was written, ready for JSON."""

    values: dict[str, Any]


def export(options: ExportConfig) -> Export:
    """Write a pruned model in another format and check it by loading it.

    Raises:
        LoraPruneError: for anything wrong with model or options, or a format that cannot hold it; nothing is written then.
    """
    entry, quantization, config = check_export(options)
    with new_folder(Path(options.output), overwrite=options.overwrite) as folder:
        values = write_format(options, entry, quantization, config, folder)
    return Export(values | {"output": options.output})


def check_export(options: ExportConfig) -> tuple[Format, str, PreTrainedConfig]:
    """Check all inputs before weights are read; return the format, its quantisation, and the model's configuration.

    Raises:
        LoraPruneError: as `export`.
    """
    found = Findings()
    config = check_model(options.model, NEEDS["export"], found, trust_remote_code=options.trust_remote_code)
    with found.check():
        entry = formats.get(options.format)
        with found.check():
            check_installed(options.format, entry)
        with found.check():
            quantization = choose_quantization(options.format, entry, options)
        if config:
            entry.check(config, options)
    if options.data is not None:
        trust = options.trust_remote_code
        check_data(options.model, config, None, options.data, found, task=options.task, trust_remote_code=trust)
    found.raise_all()
    assert config is not None
    return entry, quantization, config


def write_format(
    options: ExportConfig, entry: Format, quantization: str, config: PreTrainedConfig, folder: Path
) -> dict[str, Any]:
    """Write and verify a format in an empty folder, with its export.json and card; return the content of export.json."""
    model = load_model(
        options.model, device=torch.device("cpu"), dtype=torch.float32, trust_remote_code=options.trust_remote_code
    )
    dtype = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
    source = Source(options.model, Path(resolve(options.model)), model, dtype, options, quantization)
    written = entry.write(source, folder)
    values: dict[str, Any] = {
        "model": options.model,
        "format": options.format,
        "quantization": quantization,
        "parameters": model.num_parameters(),
        "bytes": sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
    }
    values |= written
    (folder / "export.json").write_text(json.dumps(values, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    write_card(source, values, folder)
    return values
