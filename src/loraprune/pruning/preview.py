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
from loraprune.models.loading import load_config
from loraprune.pruning.allocation import Counts, Space
from loraprune.pruning.surgery import check_groups
from loraprune.pruning.target import goal_counts, groups_in_play, make_space, target_ratio


@dataclass(frozen=True, slots=True)
class Preview:
    """A model without weights and the units it is to keep."""

    config: PreTrainedConfig
    task: Task
    model: PreTrainedModel
    every: tuple[Group, ...]
    space: Space
    counts: Counts


def preview(options: PlanConfig | PruneConfig) -> Preview:
    """Return the model of a run without weights, and the units that the run would keep.

    Raises:
        PlanError: if the target cannot be reached.
    """
    config = published_config(options.model) or load_config(options.model, trust_remote_code=options.trust_remote_code)
    task, groups = find_task(config, options.task), find_groups(config)
    model = empty_model(config, head=task.head)
    check_groups(model, groups)
    space = make_space(model, groups_in_play(config, groups, options), options)
    return Preview(
        config, task, model, groups, space, goal_counts(space, options, model_parameters=model.num_parameters())
    )


def requested_ratio(options: PruneConfig) -> float:
    """Return the ratio of prunable parameters that a run is to remove, without weights.

    Raises:
        PlanError: if it cannot be reached.
    """
    aim = preview(options)
    return target_ratio(aim.space, options, model_parameters=aim.model.num_parameters())
