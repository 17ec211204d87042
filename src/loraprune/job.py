"""What a run works on: model, task and data, loaded and checked before anything is trained."""

from __future__ import annotations

import copy
import gc
import logging
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from loraprune.compensation import check_compensation
from loraprune.config import FinetuneConfig, PruneConfig
from loraprune.criteria import criteria
from loraprune.data import draw_rows
from loraprune.errors import ConfigError
from loraprune.families import find_groups
from loraprune.groups import Group
from loraprune.loading import load_config, load_with_head
from loraprune.machine import choose_device, choose_dtype
from loraprune.pruner import goal_counts, groups_in_play, make_space
from loraprune.sparsity.sparsifier import check_sparsity
from loraprune.surgery import check_groups
from loraprune.tasks import Prepared, Request, Task, choose_task

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Job:
    """Everything a run needs, loaded and checked."""

    config: PruneConfig | FinetuneConfig
    device: torch.device
    dtype: torch.dtype | None
    """precision to compute in; None for the checkpoint's"""
    stored: torch.dtype
    """precision to save in: the checkpoint's, unless one is asked for"""
    model: PreTrainedModel
    task: Task
    data: Prepared
    new: tuple[str, ...]
    """modules that the checkpoint lacks: they start anew and are trained whole"""
    groups: tuple[Group, ...]
    dense_config: PreTrainedConfig
    dense_parameters: int


def load_job(config: PruneConfig | FinetuneConfig) -> Job:
    """Load model, tokenizer and data, and find out now whatever could fail after the training."""
    pruning = config.pruning()
    criteria.get(pruning.criterion)
    device = choose_device(config.device)
    dtype = choose_dtype(config.dtype, device)
    original = load_config(config.model, trust_remote_code=config.trust_remote_code)
    find_groups(original)
    task = choose_task(original, config.task, data=config.data)
    data = task.prepare(
        Request(config.model, original, config.data, config.eval, config.length, config.seed, config.trust_remote_code)
    )
    data = replace(data, train=draw_rows(data.training, config.rows, seed=config.seed))
    model, new = load_with_head(
        config.model, task.head, device=device, dtype=dtype, trust_remote_code=config.trust_remote_code,
        values=data.values, new=task.new, seed=config.seed,
    )  # fmt: skip
    if new:
        logger.info("new and trained whole, as the checkpoint has no such head: %s", ", ".join(new))
    groups = find_groups(model.config)
    check_groups(model, groups)
    if pruning.sparsity:
        check_sparsity(model, groups, pruning)
    elif isinstance(config, PruneConfig):
        in_play = groups_in_play(model.config, groups, pruning)
        if pruning.compensate:
            check_compensation(in_play)
        goal_counts(make_space(model, in_play, pruning), pruning, model_parameters=model.num_parameters())
    dense_config = copy.deepcopy(model.config)
    if new and isinstance(config, PruneConfig) and config.teacher != "none":
        raise ConfigError(
            f"--teacher {config.teacher}: the dense model's {new[0]} is new and knows nothing: tune it first with "
            "`loraprune finetune`, and name that folder as --model"
        )
    stored = original.dtype if config.dtype == "auto" and isinstance(original.dtype, torch.dtype) else model.dtype
    return Job(
        config, device, dtype, stored, model, task, data, new, groups, dense_config, model.num_parameters()
    )  # fmt: skip


def free(job: Job) -> None:
    """Let go of the model in memory."""
    del job.model
    gc.collect()
    if job.device.type == "cuda":
        torch.cuda.empty_cache()
