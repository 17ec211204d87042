"""The command `benchmark`: measure size and speed of one or two models."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from loraprune.config.commands import BenchmarkConfig
from loraprune.config.export import ExportConfig
from loraprune.errors import ConfigError
from loraprune.evaluation.benchmark import Engine, compare_speed
from loraprune.evaluation.benchmark.engines import PROMPT_TOKENS
from loraprune.evaluation.tasks import find_task
from loraprune.export.base import check_installed, formats
from loraprune.export.engines import make_engine
from loraprune.export.gguf.llamacpp import PACKAGE, llamacpp_version
from loraprune.families import find_groups, fitting_lengths
from loraprune.models.adapters import attach_lora
from loraprune.models.loading import load_model
from loraprune.models.opening import load_config, resolve
from loraprune.preflight import check_evaluated, reference_first
from loraprune.runtime.device import choose_dtype


@dataclass(frozen=True, slots=True)
class Speed:
    """Sizes and speeds by model name, as JSON values."""

    values: dict[str, Any]


def benchmark(options: BenchmarkConfig) -> Speed:
    """Measure size and speed of a model and of a second one, which is the reference.

    Raises:
        LoraPruneError: for anything wrong with the models.
    """
    names = reference_first(options.model, options.against)
    trust = options.trust_remote_code
    device, configs = check_evaluated("benchmark", names, (), device=options.device, trust_remote_code=trust)
    if options.formats:
        check_engines(options, configs[options.model])
        device = torch.device("cpu")
    dtype = choose_dtype(options.dtype, device, load_config(names[0], trust_remote_code=trust).dtype)
    models = {name: load_model(name, device=device, dtype=dtype, trust_remote_code=trust) for name in names}
    (length,) = fitting_lengths([options.length], [model.config for model in models.values()])
    folders = {name: Path(resolve(name)) for name in names if Path(resolve(name)).is_dir()}
    if options.unmerged is not None:
        models[f"{options.model}, LoRA of rank {options.unmerged} apart"] = with_adapter(
            models[options.model], options.unmerged
        )
    with TemporaryDirectory() as room:
        engines = make_engines(options, Path(room), context=max(length, PROMPT_TOKENS + options.tokens))
        compared = compare_speed(
            models, batches=tuple(options.batches), length=length, new_tokens=options.tokens, repeats=options.repeats,
            folders=folders, engines=engines,
        )  # fmt: skip
        engines.clear()  # before their files are deleted
    return Speed(compared.to_json())


def with_adapter(model: PreTrainedModel, rank: int) -> PreTrainedModel:
    """Return a copy of a model with unmerged LoRA adapters on every prunable projection."""
    groups = find_groups(model.config)
    adapted: Any = attach_lora(deepcopy(model), groups, rank=rank, alpha=2.0 * rank, dropout=0.0, seed=0)
    apart: PreTrainedModel = adapted.get_base_model().to(model.dtype)
    return apart


def check_engines(options: BenchmarkConfig, config: PreTrainedConfig) -> None:
    """Raise a ConfigError for a model that no engine can time, or if the library for a format is not installed."""
    task = find_task(config).name
    if task != "causal-lm":
        raise ConfigError(
            f"--formats {options.formats}: only causal language models can be timed there, and this {config.model_type!r} is for {task}; "
            "leave --formats out"
        )
    names = [name for name, _ in options.format_names()]
    if "gguf" in names and llamacpp_version() is None:
        raise ConfigError(
            f"--formats gguf: llama.cpp is timed with {PACKAGE}, which is not installed; pip install {PACKAGE}"
        )
    for name in names:
        check_installed(name, formats.get(name))


def make_engines(options: BenchmarkConfig, room: Path, *, context: int) -> dict[str, Engine]:
    """Export the model to every requested format, and return the engines by name."""
    engines: dict[str, Engine] = {}
    for name, quantization in options.format_names():
        folder = room / f"{name}-{quantization}"
        folder.mkdir()
        chosen = ExportConfig(
            model=options.model, output=str(folder / "unused"), format=name, quantization=quantization,
            trust_remote_code=options.trust_remote_code,
        )  # fmt: skip
        engines[f"{options.model} as {name}{f' {quantization}' if quantization else ''}"] = make_engine(
            chosen, folder, context=context
        )
    return engines
