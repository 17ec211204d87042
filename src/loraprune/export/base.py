"""What every format shares: the source, the registry, the check that an extra is installed.

Knows nothing about any format.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from loraprune.config.export import ExportConfig
from loraprune.errors import CheckpointError, ConfigError, nearest
from loraprune.evaluation.tasks import find_task
from loraprune.models.folder import TOKENIZER_CONFIG
from loraprune.models.opening import load_tokenizer, quiet
from loraprune.registry import Registry
from loraprune.runtime.hub import at_home, parts


@dataclass(frozen=True, slots=True)
class Source:
    """A model to write in another format."""

    name: str
    """folder or hub id"""
    folder: Path
    """its folder; no folder for a hub id"""
    model: PreTrainedModel
    """on the CPU in float32"""
    dtype: torch.dtype
    """precision of its file"""
    options: ExportConfig
    quantization: str
    """one of the format's"""

    @property
    def config(self) -> PreTrainedConfig:
        """Return the model's configuration."""
        return self.model.config

    @property
    def has_tokenizer(self) -> bool:
        """Return whether there is a tokenizer beside the weights or a merged adapter; for a hub id, on the hub."""
        places = [self.folder, *(Path(at_home(adapter)) for adapter in parts(self.name)[1:] if adapter)]
        return not self.folder.is_dir() or any((place / TOKENIZER_CONFIG).is_file() for place in places)


Writer: TypeAlias = Callable[[Source, Path], dict[str, Any]]
"""writes a source into an empty folder, loads the result, and returns `verification`, `verified_by` and `load` for the report"""


@dataclass(frozen=True, slots=True)
class Format:
    """One export format: the function that writes it, and the checks before weights are read."""

    write: Writer
    check: Callable[[PreTrainedConfig, ExportConfig], None] = lambda config, options: None
    """raises a LoraPruneError if the format cannot hold the model"""
    needs: tuple[str, ...] = ()
    """modules that the extra `export` brings"""
    quantizations: tuple[str, ...] = ()
    """values of `--quantization`; the first is the default"""
    any_task: bool = False
    """whether models for every task can be written"""


formats: Registry[Format] = Registry("format", ConfigError)


def check_installed(name: str, entry: Format) -> None:
    """Raise a ConfigError that names the extra if a library of a format is missing."""
    missing = [module for module in entry.needs if find_spec(module) is None]
    if missing:
        raise ConfigError(
            f"--format {name} needs {' and '.join(missing)}: install the extra, pip install 'loraprune[export]'"
        )


def choose_quantization(name: str, entry: Format, options: ExportConfig) -> str:
    """Return the precision to write.

    Raises:
        ConfigError: for a precision that the format does not have.
    """
    asked = options.quantization
    if asked is None:
        return entry.quantizations[0] if entry.quantizations else "as it is"
    if asked in entry.quantizations:
        return asked
    raise ConfigError(
        f"--quantization {asked}{nearest(asked, entry.quantizations)}: {name} writes "
        f"{', '.join(entry.quantizations) or 'one precision only; leave it out'}"
    )


def check_task(name: str, config: PreTrainedConfig, *tasks: str) -> None:
    """Raise a ConfigError if a model is for another task than a format is for."""
    task = find_task(config).name
    if task not in tasks:
        raise ConfigError(
            f"--format {name}: it holds models for {' or '.join(tasks)}, and this {config.model_type!r} is for {task}; "
            f"{' and '.join(one for one in formats.names() if formats.get(one).any_task)} hold it"
        )


def save_companions(source: Source, folder: Path) -> None:
    """Write configuration, generation settings and tokenizer or image processor beside what was exported."""
    with quiet():
        source.config.save_pretrained(folder)
        generation = getattr(source.model, "generation_config", None)
        if generation is not None:
            generation.save_pretrained(folder)
    if source.model.main_input_name == "input_ids" and source.has_tokenizer:
        tokenizer_of(source).save_pretrained(folder)
    processor = source.folder / "preprocessor_config.json"
    if processor.is_file():
        (folder / processor.name).write_bytes(processor.read_bytes())


def tokenizer_of(source: Source) -> Any:
    """Return the tokenizer of a source.

    Raises:
        CheckpointError: if there is none.
    """
    if not source.has_tokenizer:
        raise CheckpointError(f"--model {source.name}: it has no tokenizer; save one into the folder")
    return load_tokenizer(source.name, trust_remote_code=source.options.trust_remote_code)
