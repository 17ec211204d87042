"""Find the task of a run: the requested one, else the one of the model's head and the data's columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from transformers import PreTrainedConfig, PreTrainedModel

from loraprune.data import OWN_NAMES, Columns, columns_of
from loraprune.errors import ConfigError, UnsupportedModelError
from loraprune.evaluation.tasks.base import Inputs, Task, tasks
from loraprune.evaluation.tasks.text import padded_tokens
from loraprune.models.auto_classes import can_build, find_head

PRETRAINING = ("AutoModelForMaskedLM",)
"""heads that a model keeps unless the data's columns call for another task"""
WITHOUT_TASK = ("AutoModelForTokenClassification", "AutoModelForQuestionAnswering")
"""heads that are pruned and saved only in your own Trainer"""
PROBE_ROWS, PROBE_TOKENS = 2, 48


def find_task(config: PreTrainedConfig, name: str | None = None, *, columns: Sequence[str] = ()) -> Task:
    """Return the task of a model: `name`'s, or its head's; a model that is only pre-trained takes what the columns of the data call for.

    Raises:
        ConfigError: if there is no task of that name.
        UnsupportedModelError: if no task has the model's head, or the model has no head of the task.
    """
    if name is not None:
        task = tasks.get(name)
        if not can_build(config, task.head):
            raise UnsupportedModelError(
                f"--task {name}: transformers has no {task.head} for models of type {config.model_type!r}: leave --task out, or "
                "name another model"
            )
        return task
    head = find_head(config)
    known = [tasks.get(each) for each in tasks.names()]
    if head in PRETRAINING:
        able = (task for task in known if task.columns and set(task.columns) <= set(columns))
        others = [task for task in able if task.head != head and can_build(config, task.head)]
        if others:
            return others[0]
    for task in known:
        if task.head == head:
            return task
    raise UnsupportedModelError(
        f"no task trains or evaluates {head} ({_class(config)}): known are {', '.join(tasks.names())}; name another one by --task, or "
        "prune the model in your own Trainer, as docs/trainer.md shows"
    )


def _class(config: PreTrainedConfig) -> str:
    return ", ".join(config.architectures or ()) or str(config.model_type)


def probe_of(model: PreTrainedModel) -> Inputs:
    """Return the inputs on which a model is compared with its pruned or exported form; one whose head no task has reads texts."""
    config: PreTrainedConfig = model.config
    if find_head(config) in WITHOUT_TASK:
        return padded_tokens(config, PROBE_ROWS, PROBE_TOKENS)
    return find_task(config).probe(config, PROBE_ROWS, PROBE_TOKENS)


def choose_task(config: PreTrainedConfig, name: str | None, *, data: str | None, columns: Columns = OWN_NAMES) -> Task:
    """Return the task of a run; the data, if any, are read only if a model is merely pre-trained."""
    if name is not None or data is None or find_head(config) not in PRETRAINING:
        return find_task(config, name)
    return find_task(config, columns=columns_of(data, columns))


def same_task(tasks: Mapping[str, Task]) -> Task:
    """Return the task that models, given by name, have in common.

    Raises:
        ConfigError: if they have different ones.
    """
    first, *others = tasks.values()
    if any(other.name != first.name for other in others):
        found = ", ".join(f"{name} for {task.name}" for name, task in tasks.items())
        raise ConfigError(f"models for different tasks do not compare: {found}; name models for one task")
    return first
