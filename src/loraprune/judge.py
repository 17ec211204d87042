"""The commands `evaluate` and `benchmark`: load one or two models, measure them, return the figures.

Knows nothing about pruning.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from loraprune.benchmark import compare_speed
from loraprune.errors import Findings
from loraprune.families import positions
from loraprune.inputs import NEEDS, check_data, check_model
from loraprune.loading import load_config, load_model, load_with_head, resolve
from loraprune.machine import choose_device, choose_dtype
from loraprune.settings import BenchmarkConfig, EvaluateConfig
from loraprune.tasks import Request, choose_task


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Figures by model name, ready for JSON."""

    values: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Speed:
    """Sizes and speeds by model name, ready for JSON."""

    values: dict[str, Any]


def evaluate(options: EvaluateConfig) -> Evaluation:
    """Measure how good a model is at its task, and a second one on the same data with its own tokenizer.

    Raises:
        LoraPruneError: for anything wrong with models or data.
    """
    device, names = _check("evaluate", options)
    dtype = choose_dtype(options.dtype, device)
    results = {}
    for name in names:
        config = load_config(name, trust_remote_code=options.trust_remote_code)
        task = choose_task(config, options.task, data=options.data)
        prepared = task.prepare(
            Request(name, config, None, options.data, options.length, trust_remote_code=options.trust_remote_code)
        )
        model, _ = load_with_head(
            name, task.head, device=device, dtype=dtype, trust_remote_code=options.trust_remote_code
        )  # fmt: skip
        measured = task.judge(model, prepared, options.batch)
        results[name] = measured.to_json() | {"metric": measured.metric}
    return Evaluation({"data": options.data, "models": results})


def benchmark(options: BenchmarkConfig) -> Speed:
    """Measure size and speed of a model, side by side with a second one, which is the reference.

    Raises:
        LoraPruneError: for anything wrong with the models.
    """
    device, names = _check("benchmark", options)
    dtype = choose_dtype(options.dtype, device)
    models = {
        name: load_model(name, device=device, dtype=dtype, trust_remote_code=options.trust_remote_code)
        for name in names
    }
    length = min([options.length, *(positions(model.config) or options.length for model in models.values())])
    compared = compare_speed(
        models,
        batches=tuple(options.batches),
        length=length,
        new_tokens=options.tokens,
        repeats=options.repeats,
        folders={name: Path(resolve(name)) for name in names if Path(resolve(name)).is_dir()},
    )
    return Speed(compared.to_json())


def _check(command: str, options: EvaluateConfig | BenchmarkConfig) -> tuple[torch.device, list[str]]:
    """Look at everything that is given; return the device and the models, the reference first."""
    found, device = Findings(), torch.device("cpu")
    names = list(dict.fromkeys(name for name in (options.against, options.model) if name))
    with found.check():
        device = choose_device(options.device)
    for name in names:
        check_model(name, NEEDS[command], found, trust_remote_code=options.trust_remote_code)
        if isinstance(options, EvaluateConfig):
            check_data(name, None, options.data, found, task=options.task, trust_remote_code=options.trust_remote_code)
    found.raise_all()
    return device, names
