"""Predict what a run will keep, from the model's configuration alone. Reads no weights."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedConfig, PreTrainedModel

from loraprune.config.commands import PlanConfig
from loraprune.config.training import PruneConfig
from loraprune.evaluation.tasks import Task, find_task
from loraprune.families import find_groups
from loraprune.groups import Group
from loraprune.models.empty import empty_model
from loraprune.models.known_shapes import published_config
from loraprune.models.opening import load_config
from loraprune.pruning.surgery import check_groups
from loraprune.pruning.target import Target, find_target


@dataclass(frozen=True, slots=True)
class Preview:
    """A model without weights and the units it is to keep."""

    config: PreTrainedConfig
    task: Task
    model: PreTrainedModel
    every: tuple[Group, ...]
    target: Target


def preview(options: PlanConfig | PruneConfig) -> Preview:
    """Return the model of a run without weights, and the units that the run would keep.

    Raises:
        PlanError: if the target cannot be reached.
    """
    config = published_config(options.model) or load_config(options.model, trust_remote_code=options.trust_remote_code)
    task, groups = find_task(config, options.task), find_groups(config)
    model = empty_model(config, head=task.head)
    check_groups(model, groups)
    return Preview(config, task, model, groups, find_target(model, options))
