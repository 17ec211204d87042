"""`evaluate`, `benchmark` and `compare` as functions."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import datasets

from loraprune.commands.benchmark import benchmark as benchmark_by_options
from loraprune.commands.compare_models import compare_models
from loraprune.commands.evaluate import evaluate as evaluate_by_options
from loraprune.config.base import Device
from loraprune.config.commands import BenchmarkConfig, CompareModelsConfig, EvaluateConfig
from loraprune.config.in_python import spoken_in_python
from loraprune.functions.arguments import make_options, takes
from loraprune.functions.objects import Data, Model, Objects, Processing, objects
from loraprune.functions.results import Comparison, Evaluation, Speed


@takes(EvaluateConfig)
def evaluate(  # noqa: D417
    model: Model,
    *,
    data: Data | Mapping[str, Data] | None = None,
    tokenizer: Processing = None,
    against: Model | None = None,
    tasks: str | None = EvaluateConfig.tasks,
    batch: int = EvaluateConfig.batch,
    device: Device = EvaluateConfig.device,
    **options: Any,
) -> Evaluation:
    """Measure a model's quality on its task and on tasks of lm-eval, with the protocol recorded.

    Args:
        model: A transformers model, the result of `prune`, a folder or a hub id. Models in memory are not changed.
        data: What to measure on: all of a list or Dataset, the held-out split of a DatasetDict; several as {name: data}.
        tokenizer: The tokenizer, or the image processor, of models in memory.
        against: A second model, measured on the same data.
        options: All options of `loraprune evaluate`.

    Raises:
        LoraPruneError: for anything wrong with models, data or tasks.
    """
    values: dict[str, Any] = {"tasks": tasks, "batch": batch, "device": device, **options}
    with objects() as named, spoken_in_python(values, EvaluateConfig):
        values |= {"model": named.model("model", model, tokenizer)}
        values |= {"against": _named(named, "against", against, tokenizer)} if against is not None else {}
        if isinstance(data, Mapping) and not isinstance(data, datasets.DatasetDict):
            values["data"] = [named.data("data", each, name=name) for name, each in data.items()]
        elif data is not None:
            values["data"] = named.data("data", data)
        return Evaluation.of(evaluate_by_options(make_options(EvaluateConfig, values)).values)


@takes(BenchmarkConfig)
def benchmark(  # noqa: D417
    model: Model,
    *,
    against: Model | None = None,
    tokenizer: Processing = None,
    length: int = BenchmarkConfig.length,
    tokens: int = BenchmarkConfig.tokens,
    repeats: int = BenchmarkConfig.repeats,
    device: Device = BenchmarkConfig.device,
    **options: Any,
) -> Speed:
    """Measure size and speed of a model, in turns with a second one, which is the reference.

    Args:
        model: A transformers model, the result of `prune`, a folder or a hub id. Copies of models in memory are timed.
        against: The model to compare with, usually the dense one.
        tokenizer: The tokenizer of models in memory, for `formats` that hold one.
        options: All options of `loraprune benchmark`.

    Raises:
        LoraPruneError: for anything wrong with the models.
    """
    values: dict[str, Any] = {"length": length, "tokens": tokens, "repeats": repeats, "device": device, **options}
    with objects() as named, spoken_in_python(values, BenchmarkConfig):
        values |= {"model": named.model("model", model, tokenizer)}
        values |= {"against": _named(named, "against", against, tokenizer)} if against is not None else {}
        return Speed.of(benchmark_by_options(make_options(BenchmarkConfig, values)).values)


@takes(CompareModelsConfig)
def compare(  # noqa: D417
    models: Mapping[str, Model] | Sequence[Model],
    *,
    data: Data | None = None,
    tokenizer: Processing = None,
    length: int = CompareModelsConfig.length,
    batch: int = CompareModelsConfig.batch,
    repeats: int = CompareModelsConfig.repeats,
    device: Device = CompareModelsConfig.device,
    **options: Any,
) -> Comparison:
    """Compare two or more models of one task: parameters, MACs, size, speed and quality.

    Args:
        models: The models, the first being the reference; those in memory as {name: model}, to name them in the result.
        data: What to measure quality on; without it only size and speed are measured.
        tokenizer: The tokenizer of models in memory.
        options: All options of `loraprune compare-models`, such as `output` for a table and a plot.

    Raises:
        LoraPruneError: for anything wrong with models or data; nothing is written then.
    """
    values: dict[str, Any] = {"length": length, "batch": batch, "repeats": repeats, "device": device, **options}
    with objects() as named, spoken_in_python(values, CompareModelsConfig):
        pairs = models.items() if isinstance(models, Mapping) else [("", model) for model in models]
        values["models"] = [_named(named, "models", model, tokenizer, name=name) for name, model in pairs]
        values |= {"data": named.data("data", data)} if data is not None else {}
        return Comparison.of(compare_models(make_options(CompareModelsConfig, values)).values)


def _named(named: Objects, argument: str, model: Model, tokenizer: Processing, *, name: str = "") -> str:
    """Return the name of a second model; one that the caller passed by name has its own tokenizer."""
    return named.model(argument, model, None if isinstance(model, str | os.PathLike) else tokenizer, name=name)
