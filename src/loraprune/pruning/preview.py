"""Predict what a run will keep, from the model's configuration alone. Reads no weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from loraprune.config.commands import PlanConfig
from loraprune.config.training import PruneConfig
from loraprune.evaluation.tasks import Task, find_task
from loraprune.families import find_groups
from loraprune.groups import Group
from loraprune.models.empty import empty_model
from loraprune.models.known_shapes import published_config
from loraprune.models.opening import load_config
from loraprune.models.vocabulary import planned, reads_no_text
from loraprune.pruning.adapters import check_adapter
from loraprune.pruning.deployment import Deployment
from loraprune.pruning.surgery import check_groups
from loraprune.pruning.target import Target, find_target


@dataclass(frozen=True, slots=True)
class Preview:
    """A model without weights, its vocabulary cut if that is asked for, and the units it is to keep."""

    config: PreTrainedConfig
    task: Task
    model: PreTrainedModel
    every: tuple[Group, ...]
    target: Target
    dense_parameters: int
    """of the whole dense model, before its vocabulary is cut"""


def preview(options: PlanConfig | PruneConfig) -> Preview:
    """Return the model of a run without weights, and the units that the run would keep.

    Raises:
        ConfigError: if the vocabulary cannot have as many tokens as are asked for, or the kind of adapter cannot be used.
        PlanError: if the target cannot be reached.
    """
    config = published_config(options.model) or load_config(options.model, trust_remote_code=options.trust_remote_code)
    task, groups = find_task(config, options.task), find_groups(config)
    model = dense = empty_model(config, head=task.head)
    if options.most_tokens:
        if task.unit != "tokens":
            raise reads_no_text(options.most_tokens)
        config = planned(config, options.most_tokens)
        model = empty_model(config, head=task.head)
    check_groups(model, groups)
    check_adapter(options.adapter, model, groups, quantize=options.quantize)
    # `plan` saves in its --dtype, a run in the checkpoint's precision. Nothing is timed here.
    known = config.dtype if isinstance(options, PruneConfig) else None
    deployment = Deployment.of_options(options.dtype, torch.device("cpu"), known=known, timed=False)
    target = find_target(model, options, dense=dense if options.most_tokens else None, deployment=deployment)
    return Preview(config, task, model, groups, target, dense.num_parameters())
