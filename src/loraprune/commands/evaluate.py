"""The commands `evaluate`, `benchmark` and `report`: load one or two models, measure them, return and show the figures.

Knows nothing about pruning.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from loraprune.config.commands import BenchmarkConfig, EvaluateConfig, ReportConfig
from loraprune.config.export import ExportConfig
from loraprune.data import check_vocabulary
from loraprune.errors import ConfigError
from loraprune.evaluation.benchmark import Engine, compare_speed
from loraprune.evaluation.benchmark.engines import PROMPT_TOKENS
from loraprune.evaluation.harness import Answers, answer, open_tasks, protocol, side_by_side
from loraprune.evaluation.measurement import Measured, paired_difference
from loraprune.evaluation.tasks import Request, Task, choose_task, find_task, same_task
from loraprune.export.base import check_installed, formats
from loraprune.export.engines import make_engine
from loraprune.export.gguf.llamacpp import PACKAGE, llamacpp_version
from loraprune.families import find_groups, fitting_lengths
from loraprune.models.adapters import attach_lora
from loraprune.models.loading import load_config, load_model, load_tokenizer, load_with_head, resolve
from loraprune.preflight import check_judged
from loraprune.reporting.html.folder import EVALUATION, read_run
from loraprune.reporting.html.page import NAME, render, write_page, write_plots
from loraprune.runtime.atomic import replace_text
from loraprune.runtime.device import choose_dtype

Window: TypeAlias = tuple[str, int]
"""name of the data, and tokens in a row"""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How good models are at their task and at tasks of lm-eval, by model name, ready for JSON."""

    values: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Drawn:
    """The files that were drawn, ready for JSON."""

    values: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Speed:
    """Sizes and speeds by model name, ready for JSON."""

    values: dict[str, Any]


def evaluate(options: EvaluateConfig) -> Evaluation:
    """Measure how good a model is at its task and at tasks of lm-eval, and a second one on the same data with its own tokenizer.

    Raises:
        LoraPruneError: for anything wrong with models, data or tasks.
    """
    device, names = _check("evaluate", options)
    dtype, trust = choose_dtype(options.dtype, device), options.trust_remote_code
    configs = {name: load_config(name, trust_remote_code=trust) for name in names}
    task = _common_task(options, configs)
    lengths = fitting_lengths(options.lengths(), configs.values())
    asked = open_tasks(options.task_names(), options.task_data) if options.tasks else None
    measured: dict[Window, dict[str, Measured]] = {}
    answers: dict[str, Answers] = {}
    for name, config in configs.items():
        windows = {
            (text, length): task.prepare(Request(name, config, None, text, length, trust_remote_code=trust))
            for text in options.texts()
            for length in (lengths if task.unit == "tokens" else lengths[:1])
        }
        model, _ = load_with_head(name, task.head, device=device, dtype=dtype, trust_remote_code=trust)
        for window, prepared in windows.items():
            measured.setdefault(window, {})[name] = task.judge(model, prepared, options.batch)
        if asked:
            tokenizer = load_tokenizer(name, trust_remote_code=trust)
            check_vocabulary(tokenizer, config.get_text_config().vocab_size)
            answers[name] = answer(
                asked,
                model,
                tokenizer,
                batch=options.batch,
                length=max(lengths),
                limit=options.limit,
                shots=options.shots,
            )
        del model
    result = Evaluation(_figures(options, names, measured, answers))
    if options.record:
        replace_text(Path(options.model) / EVALUATION, json.dumps(result.values, indent=1) + "\n")
        write_page(Path(options.model))
    return result


def _common_task(options: EvaluateConfig, configs: Mapping[str, PreTrainedConfig]) -> Task:
    """Return the task of all models, or say why they have none in common."""
    data = next(iter(options.texts()), None)
    tasks = {name: choose_task(config, options.task, data=data) for name, config in configs.items()}
    task = same_task(tasks)
    if options.tasks and task.name != "causal-lm":
        raise ConfigError(
            f"--tasks {options.tasks}: lm-eval asks causal language models, and {options.model} is for {task.name}; give --data "
            "alone"
        )
    return task


def _figures(
    options: EvaluateConfig,
    names: list[str],
    measured: Mapping[Window, Mapping[str, Measured]],
    answers: Mapping[str, Answers],
) -> dict[str, Any]:
    """Put everything that was measured together."""
    values: dict[str, Any] = {"names": names, "device": options.device, "dtype": options.dtype}
    values["measurements"] = [
        {
            "data": text, "length": length, "metric": next(iter(models.values())).metric,
            "models": {name: one.to_json() | {"metric": one.metric} for name, one in models.items()},
            "difference": paired_difference(*models.values()) if len(models) == 2 else None,
        }
        for (text, length), models in measured.items()
    ]  # fmt: skip
    if values["measurements"]:
        values |= {key: values["measurements"][0][key] for key in ("data", "models")}
    if answers:
        how = protocol(folder=options.task_data, limit=options.limit, shots=options.shots)
        values["tasks"] = {"rows": side_by_side(answers), "protocol": how}
    return values


def redraw(options: ReportConfig) -> Drawn:
    """Write report.html of a run's folder anew, and its plots as files where they are asked for.

    Raises:
        CheckpointError: if it is no such folder.
        LoraPruneError: if the extra that draws is not installed.
    """
    folder = Path(options.model)
    run = read_run(folder)
    page = render(run)
    names = write_plots(run, Path(options.plots)) if options.plots else []
    replace_text(folder / NAME, page)
    files = [f"{options.plots}/{name}.{kind}" for name in names for kind in ("png", "svg")]
    return Drawn({"page": str(folder / NAME), "plots": files})


def benchmark(options: BenchmarkConfig) -> Speed:
    """Measure size and speed of a model, side by side with a second one, which is the reference.

    Raises:
        LoraPruneError: for anything wrong with the models.
    """
    device, names = _check("benchmark", options)
    if options.formats:
        check_engines(options)
        device = torch.device("cpu")
    dtype = choose_dtype(options.dtype, device)
    models = {
        name: load_model(name, device=device, dtype=dtype, trust_remote_code=options.trust_remote_code)
        for name in names
    }
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
        engines.clear()  # before their files go
    return Speed(compared.to_json())


def with_adapter(model: PreTrainedModel, rank: int) -> PreTrainedModel:
    """Return a copy of a model with LoRA on every prunable projection, not merged."""
    groups = find_groups(model.config)
    adapted: Any = attach_lora(deepcopy(model), groups, rank=rank, alpha=2.0 * rank, dropout=0.0, seed=0)
    apart: PreTrainedModel = adapted.get_base_model().to(model.dtype)
    return apart


def check_engines(options: BenchmarkConfig) -> None:
    """Raise a ConfigError for a model that no engine times, or if what would run a format is not installed."""
    config = load_config(options.model, trust_remote_code=options.trust_remote_code)
    task = find_task(config).name
    if task != "causal-lm":
        raise ConfigError(
            f"--formats {options.formats}: models that continue a text are timed there, and this {config.model_type!r} is for {task}; "
            "leave it out"
        )
    names = [name for name, _ in options.format_names()]
    if "gguf" in names and llamacpp_version() is None:
        raise ConfigError(
            f"--formats gguf: llama.cpp is timed through {PACKAGE}, which is not installed; pip install {PACKAGE}"
        )
    for name in names:
        check_installed(name, formats.get(name))


def make_engines(options: BenchmarkConfig, room: Path, *, context: int) -> dict[str, Engine]:
    """Export the model to every format that is asked for, and return what runs it by name."""
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


def _check(command: str, options: EvaluateConfig | BenchmarkConfig) -> tuple[torch.device, list[str]]:
    """Look at everything that is given; return the device and the models, the reference first."""
    names = list(dict.fromkeys(name for name in (options.against, options.model) if name))
    texts, task = (options.texts(), options.task) if isinstance(options, EvaluateConfig) else ([], None)
    trust = options.trust_remote_code
    return check_judged(command, names, texts, device=options.device, task=task, trust_remote_code=trust), names
