"""Accuracy on multiple-choice tasks through lm-eval, with data from the hub or from local files. The only file that imports lm-eval.

Knows nothing about pruning: it stores for every document whether the answer was right, so that models can be compared in pairs.
"""

from __future__ import annotations

import logging
import math
import statistics
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import yaml
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from loraprune.data.files import reason
from loraprune.errors import ConfigError, DataError, nearest
from loraprune.runtime.hub import task_data_problem

METRICS = ("acc_norm", "acc")
"""the accuracy of a task is the first of these that it has; acc_norm divides a choice's log-likelihood by its bytes"""
SUFFIXES = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
"""of files in a folder of task data, and how `datasets` calls their format"""

SEED = 1234
"""of the solved examples before a question; the harness's own"""
HINT = "name a folder of files with --task-data, or check that the hub can be reached"

Answers: TypeAlias = Mapping[str, "Answered"]
"""task as requested -> its answers"""


@dataclass(frozen=True, slots=True)
class Answered:
    """One model's results on one task."""

    metric: str
    right: tuple[float, ...]
    """1 or 0 for each document, in the task's order"""


@dataclass(frozen=True, slots=True)
class Tasks:
    """Tasks with their documents."""

    leaves: Mapping[str, Sequence[str]]
    """name as requested -> its tasks: itself, or all of a group such as mmlu"""
    loaded: Any
    """the harness's objects for the tasks below all names"""


def open_tasks(names: Sequence[str], folder: str | None) -> Tasks:
    """Find tasks, and with `folder` their files there: TASK.jsonl, .json, .csv or .parquet, or TASK-anything with such an end.

    Local files have the columns that the stock task reads and stand for its evaluation split.

    Raises:
        ConfigError: for an unknown task, or a missing file or extra.
        DataError: for documents that cannot be loaded or read.
    """
    with _silent():
        stock = _stock()
        index = stock.task_index
        for name in names:
            if name not in index:
                raise ConfigError(f"--tasks {name}: lm-eval has no such task{nearest(name, index)}")
        leaves = {name: sorted(_leaves(name, index)) for name in names}
        wanted = sorted({leaf for below in leaves.values() for leaf in below})
        with TemporaryDirectory() as written:
            for leaf in wanted if folder else ():
                text = yaml.safe_dump(_local(leaf, index[leaf], Path(str(folder))))
                (Path(written) / f"{leaf}.yaml").write_text(text, encoding="utf-8")
            manager = type(stock)(include_path=written, include_defaults=False) if folder else stock
            try:
                loaded = manager.load(wanted)
            except Exception as error:  # the harness, datasets and every task have errors of their own
                raise DataError(f"--tasks {','.join(names)}: cannot be read ({reason(error)}); {HINT}") from None
    return Tasks(leaves, loaded)


@cache
def _stock() -> Any:
    """Return the harness's own tasks; it reads thousands of files to list them."""
    try:
        from lm_eval.tasks import TaskManager
    except ModuleNotFoundError:
        raise ConfigError("--tasks: lm-eval is missing; pip install 'loraprune[eval]' adds it") from None
    return TaskManager()


def _leaves(name: str, index: Mapping[str, Any]) -> Iterator[str]:
    """Yield the tasks below a task, a group or a tag."""
    entry = index[name]
    below = (entry.cfg or {}).get("task") if entry.kind.name == "GROUP" else sorted(entry.tags)
    if entry.kind.name in ("TASK", "PY_TASK"):
        yield name
        return
    for child in below or []:
        yield from _leaves(child if isinstance(child, str) else str(child.get("task") or child.get("group")), index)


def _local(task: str, entry: Any, folder: Path) -> dict[str, Any]:
    """Return the configuration of a stock task that reads a local file."""
    if problem := task_data_problem(str(folder)):
        raise ConfigError(f"--task-data {folder}: {problem}")
    candidates = [folder / f"{task}{suffix}" for suffix in SUFFIXES]
    candidates += [path for suffix in SUFFIXES for path in sorted(folder.glob(f"{task}-*{suffix}"))]
    file = next((path for path in candidates if path.is_file()), None)
    if file is None:
        raise ConfigError(
            f"--task-data {folder}: no file for {task!r}; {task}.jsonl, .json, .csv or .parquet is needed"
        )
    stock = entry.cfg or {}
    split = "test" if stock.get("test_split") else "validation"
    splits = {f"{each}_split": split if each == split else None for each in ("training", "validation", "test")}
    return {
        "include": str(entry.yaml_path), "task": task, "tag": None, "dataset_path": SUFFIXES[file.suffix],
        "dataset_name": None, "fewshot_split": None, **splits, "dataset_kwargs": {"data_files": {split: str(file.resolve())}},
    }  # fmt: skip


def answer(
    tasks: Tasks,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    batch: int,
    length: int,
    limit: int | None,
    shots: int,
) -> Answers:
    """Run a model on at most the first `limit` documents of each task; `length` is the longest input in tokens."""
    with _silent():
        from lm_eval import evaluate
        from lm_eval.models.huggingface import HFLM

        wrapped: Any = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch, max_length=length)
        # Not its simple_evaluate, which lists all tasks and all installed packages at every call.
        for task in tasks.loaded["tasks"].values():
            task.set_config(key="num_fewshot", value=shots)
            task.set_fewshot_seed(seed=SEED)
        found: Any = evaluate(lm=wrapped, task_dict=tasks.loaded, limit=limit, bootstrap_iters=0)
    return {name: _answered(name, leaves, found["samples"]) for name, leaves in tasks.leaves.items()}


def _answered(name: str, leaves: Sequence[str], samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> Answered:
    asked = [sample for leaf in leaves for sample in sorted(samples.get(leaf, []), key=lambda one: one["doc_id"])]
    metric = next((metric for metric in METRICS if asked and all(metric in one for one in asked)), None)
    if metric is None:
        raise ConfigError(f"--tasks {name}: it has no accuracy; tasks with {' or '.join(METRICS)} are needed")
    return Answered(metric, tuple(float(one[metric]) for one in asked))


def side_by_side(answers: Mapping[str, Answers]) -> list[dict[str, Any]]:
    """Return a row for each task: every model's accuracy, and the paired difference of the last to the first of several."""
    found = []
    for task in next(iter(answers.values())):
        given = {model: of[task] for model, of in answers.items()}
        first, *_, last = [*given.values(), *given.values()]
        pairs = [b - a for a, b in zip(first.right, last.right, strict=True)]
        found.append({
            "task": task, "metric": first.metric, "documents": len(first.right),
            "models": {model: mean(of.right) for model, of in given.items()},
            "difference": mean(pairs) if len(given) > 1 else None,
        })  # fmt: skip
    return [*found, _average(found)] if len(found) > 1 else found


def _average(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the row of the mean over tasks, all with equal weight, as in the paper's tables."""

    def over(figures: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
        values = [float(one["value"] or 0.0) for one in figures]
        errors = [one["standard_error"] for one in figures]
        known = [error for error in errors if error is not None]
        error = math.hypot(*known) / len(rows) if len(known) == len(rows) else None
        return {"value": statistics.fmean(values), "standard_error": error}

    differences = [row["difference"] for row in rows if row["difference"]]
    return {
        "task": "mean", "metric": "", "documents": sum(row["documents"] for row in rows),
        "models": {name: over([row["models"][name] for row in rows]) for name in rows[0]["models"]},
        "difference": over(differences) if differences else None,
    }  # fmt: skip


def mean(values: Sequence[float]) -> dict[str, float | None]:
    """Return the mean of values and its standard error; None for the error of a single value."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return {"value": statistics.fmean(values), "standard_error": error}


def protocol(*, folder: str | None, limit: int | None, shots: int) -> dict[str, Any]:
    """Return the protocol of the tasks."""
    return {"harness": f"lm-eval {version('lm-eval')}", "task_data": folder, "limit": limit, "shots": shots}


@contextmanager
def _silent() -> Iterator[None]:
    """Silence the harness's log and warnings: errors are raised here."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(level)
