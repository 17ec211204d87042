"""The command `evaluate`: measure the quality of one or two models."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from transformers import PreTrainedConfig

from loraprune.config.commands import EvaluateConfig
from loraprune.data import check_vocabulary
from loraprune.errors import ConfigError
from loraprune.evaluation.harness import Answers, answer, open_tasks, protocol, side_by_side
from loraprune.evaluation.measurement import DENSITY, Measured, paired_difference
from loraprune.evaluation.per_byte import with_bits_per_byte
from loraprune.evaluation.precision import settle_precision_
from loraprune.evaluation.tasks import Prepared, Request, Task, choose_task, same_task
from loraprune.families import fitting_lengths
from loraprune.models.loading import load_with_head
from loraprune.models.opening import load_tokenizer
from loraprune.preflight import check_evaluated, reference_first
from loraprune.reporting.html.folder import EVALUATION
from loraprune.reporting.html.page import write_page
from loraprune.runtime.atomic import replace_text
from loraprune.runtime.device import choose_dtype

logger = logging.getLogger(__name__)

Window: TypeAlias = tuple[str, int]
"""name of the data, and tokens per row"""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Quality by model name, on the models' task and on tasks of lm-eval, as JSON values."""

    values: dict[str, Any]


def evaluate(options: EvaluateConfig) -> Evaluation:
    """Evaluate a model on its task and on tasks of lm-eval, and a second one on the same data with its own tokenizer.

    Raises:
        LoraPruneError: for anything wrong with models, data or tasks.
    """
    names = reference_first(options.model, options.against)
    trust = options.trust_remote_code
    device, configs = check_evaluated(
        "evaluate", names, options.texts(), device=options.device, task=options.task,
        columns=options.roles(), trust_remote_code=trust,
    )  # fmt: skip
    dtype = choose_dtype(options.dtype, device, configs[names[0]].dtype)
    task = _common_task(options, configs)
    lengths = fitting_lengths(options.lengths(), configs.values())
    asked = open_tasks(options.task_names(), options.task_data) if options.tasks else None
    measured: dict[Window, dict[str, Measured]] = {}
    answers: dict[str, Answers] = {}
    for name, config in configs.items():
        windows = _prepare(options, task, name, config, lengths if task.unit == "tokens" else lengths[:1])
        model, _ = load_with_head(name, task.head, device=device, dtype=dtype, trust_remote_code=trust)
        if options.dtype == "auto" and device.type == "cpu" and model.dtype == torch.bfloat16 and windows:
            settle_precision_(model, task, next(iter(windows.values())), options.batch)
        for window, prepared in windows.items():
            logger.info("%s: evaluating on %d rows of %s", name, len(prepared.held_out), window[0])
            in_bits = with_bits_per_byte(task, prepared)
            measured.setdefault(window, {})[name] = in_bits.evaluate(model, prepared, options.batch)
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


def first_rows(prepared: Prepared, count: int | None) -> Prepared:
    """Return data with at most the first `count` rows to evaluate on; all rows if `count` is None."""
    if count is None or count >= len(prepared.held_out):
        return prepared
    return replace(prepared, held_out=prepared.held_out.take(range(count)))


def _prepare(
    options: EvaluateConfig, task: Task, name: str, config: PreTrainedConfig, lengths: Sequence[int]
) -> dict[Window, Prepared]:
    """Return the data of a model for every source and every length of a row."""
    trust, columns = options.trust_remote_code, options.roles()
    return {
        (text, length): first_rows(
            task.prepare(Request(name, config, None, text, length, trust_remote_code=trust, columns=columns)), options.rows
        )
        for text in options.texts()
        for length in lengths
    }  # fmt: skip


def _common_task(options: EvaluateConfig, configs: Mapping[str, PreTrainedConfig]) -> Task:
    """Return the task of all models.

    Raises:
        ConfigError: if they have no task in common, or lm-eval cannot evaluate it.
    """
    data = next(iter(options.texts()), None)
    tasks = {
        name: choose_task(config, options.task, data=data, columns=options.roles()) for name, config in configs.items()
    }
    task = same_task(tasks)
    if options.tasks and task.name != "causal-lm":
        raise ConfigError(
            f"--tasks {options.tasks}: lm-eval evaluates causal language models, and {options.model} is for {task.name}; give only "
            "--data"
        )
    return task


def _figures(
    options: EvaluateConfig,
    names: list[str],
    measured: Mapping[Window, Mapping[str, Measured]],
    answers: Mapping[str, Answers],
) -> dict[str, Any]:
    """Return all measurements as JSON values."""
    values: dict[str, Any] = {"names": names, "device": options.device, "dtype": options.dtype}
    values["measurements"] = [
        {
            "data": text, "length": length, "metric": next(iter(models.values())).metric,
            "models": {name: one.to_json() | {"metric": one.metric} for name, one in models.items()},
            "difference": _difference(text, *models.values()) if len(models) == 2 else None,
        }
        for (text, length), models in measured.items()
    ]  # fmt: skip
    if values["measurements"]:
        values |= {key: values["measurements"][0][key] for key in ("data", "models")}
    if answers:
        how = protocol(folder=options.task_data, limit=options.limit, shots=options.shots)
        values["tasks"] = {"rows": side_by_side(answers), "protocol": how}
    return values


def _difference(text: str, first: Measured, second: Measured) -> dict[str, float | None] | None:
    """Return the paired difference of two measurements; None where the models' rows are not the same text."""
    if first.others.get(DENSITY) == second.others.get(DENSITY):
        return paired_difference(first, second)
    logger.warning(
        "%s: the tokenizers split it into different tokens, so that the perplexities cannot be compared; compare bits per byte",
        text,
    )
    return None
