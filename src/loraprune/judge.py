"""The commands `evaluate` and `benchmark`: load one or two models, measure them, return the figures.

Knows nothing about pruning.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loraprune.benchmark import compare_speed
from loraprune.families import positions
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
    device = choose_device(options.device)
    dtype = choose_dtype(options.dtype, device)
    results = {}
    for name in filter(None, (options.against, options.model)):
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
    device = choose_device(options.device)
    dtype = choose_dtype(options.dtype, device)
    names = [name for name in (options.against, options.model) if name]
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
