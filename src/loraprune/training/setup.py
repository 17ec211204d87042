"""What a run needs, checked and loaded: everything wrong is told at once, before any weights are read."""

from __future__ import annotations

import copy
import gc
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from peft import PeftModel
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils.import_utils import is_accelerate_available

from loraprune.config.base import QUANTISERS, missing_quantiser
from loraprune.config.training import FinetuneConfig, PruneConfig
from loraprune.data import draw_rows
from loraprune.errors import ConfigError, Findings
from loraprune.evaluation.precision_check import settle_precision_
from loraprune.evaluation.tasks import Prepared, Request, Task, choose_task
from loraprune.families import find_groups
from loraprune.groups import EXPERTS, Group
from loraprune.models.adapters import linear_paths
from loraprune.models.empty import empty_model
from loraprune.models.loading import load_config, load_with_head
from loraprune.models.quantised import Quantisation
from loraprune.preflight import NEEDS, check_data, check_model
from loraprune.pruning.sparsity.sparsifier import check_sparsity
from loraprune.pruning.surgery import check_groups
from loraprune.pruning.target import check_recovery, goal_counts, groups_in_play, make_space
from loraprune.pruning.verify import probe_of, rounding_noise
from loraprune.runtime import launch
from loraprune.runtime.device import check_compile, check_training, choose_device, choose_dtype
from loraprune.scoring.criteria import Saliency, criteria

LEAVES_WHOLE = "1.11"
"""the first accelerate whose `ignored_modules` counts with FSDP2"""

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Job:
    """Everything a run needs, loaded and checked."""

    config: PruneConfig | FinetuneConfig
    device: torch.device
    dtype: torch.dtype | None
    """precision to compute in; None for the checkpoint's"""
    computed: torch.dtype
    """the precision that `dtype` came to"""
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
    quantisation: Quantisation | None = None
    """how the frozen weights are held while training"""
    noise: float | None = None
    """rounding noise of the dense model in the precision of computation; None if it is quantised or memory is too short"""
    adapted: PeftModel | None = None
    """the model with LoRA that was trained, until it is merged"""

    @property
    def quantisable(self) -> frozenset[str]:
        """Return the paths of the layers that can be quantised; none without the library, or kernels for this device and model."""
        try:
            check_quantize("--teacher", "8bit", self.groups, self.device)
        except ConfigError:
            return frozenset()
        return frozenset() if missing_quantiser("8bit") else frozenset(linear_paths(self.groups))

    def load_dense(self, dtype: torch.dtype | None, *, quantisation: Quantisation | None = None) -> PreTrainedModel:
        """Return the dense model once more, whose new modules start as they did."""
        config = self.config
        loaded, _ = load_with_head(
            config.model, self.task.head, device=self.device, dtype=dtype, trust_remote_code=config.trust_remote_code,
            values=self.data.values, new=self.task.new, seed=config.seed, quantisation=quantisation,
        )  # fmt: skip
        return loaded


def check_job(config: PruneConfig | FinetuneConfig) -> tuple[Task, Prepared]:
    """Check everything that a run is given, and return its task and data.

    Raises:
        LoraPruneError: for everything that is wrong, at once.
    """
    found, trust = Findings(), config.trust_remote_code
    with found.check():
        criteria.get(config.pruning().criterion)
    with found.check():
        check_training(config.dtype, config.optimizer, choose_device(config.device))
    if config.compile:
        with found.check():
            check_compile(choose_device(config.device))
            if not isinstance(criteria.get(config.pruning().criterion), Saliency):
                raise ConfigError(
                    f"--compile true --criterion {config.pruning().criterion}: it scores by hooks, each a graph of its own, more "
                    "than torch.compile keeps; use lora, or leave --compile out"
                )
    check_model(config.model, NEEDS["prune"], found, trust_remote_code=trust)
    if found.errors:
        check_data(config.model, config.data, config.eval, found, task=config.task, trust_remote_code=trust)
        found.raise_all()
    original = load_config(config.model, trust_remote_code=trust)
    task = data = None
    with found.check():
        task = choose_task(original, config.task, data=config.data)
        request = Request(config.model, original, config.data, config.eval, config.length, config.seed, trust)
        data = task.prepare(request)
        data = replace(data, train=draw_rows(data.training, config.rows, seed=config.seed))
    with found.check():
        _check_target(config, original, task, data)
    found.raise_all()
    assert task is not None
    assert data is not None
    return task, data


def _check_target(
    config: PruneConfig | FinetuneConfig, original: PreTrainedConfig, task: Task | None, data: Prepared | None
) -> None:
    """Check that the groups are those of the model and that what is asked for can be reached, without weights."""
    pruning, described = config.pruning(), copy.deepcopy(original)
    described.update(dict(data.values) if data else {})
    groups = find_groups(described)
    shell = empty_model(described, head=task.head if task else None)
    check_groups(shell, groups)
    check_base(config.quantize, groups, choose_device(config.device))
    if isinstance(config, PruneConfig):
        check_quantize("--teacher", config.teacher, groups, choose_device(config.device))
    if pruning.sparsity:
        check_sparsity(shell, groups, pruning)
    elif isinstance(config, PruneConfig):
        in_play = groups_in_play(described, groups, pruning)
        check_recovery(in_play, pruning)
        goal_counts(make_space(shell, in_play, pruning), pruning, model_parameters=shell.num_parameters())


def check_base(kind: str, groups: Sequence[Group], device: torch.device) -> None:
    """Refuse a quantised base where it cannot be held.

    Raises:
        ConfigError: as `check_quantize`, and for FSDP by an accelerate that can leave no layer whole.
    """
    if launch.is_sharded() and kind != "none" and not is_accelerate_available(LEAVES_WHOLE):
        raise ConfigError(
            f"--quantize {kind}: with FSDP every process holds quantised layers whole, which this accelerate cannot leave so; "
            f"install accelerate {LEAVES_WHOLE} or newer, or launch without --use_fsdp"
        )
    check_quantize("--quantize", kind, groups, device)


def check_quantize(option: str, kind: str, groups: Sequence[Group], device: torch.device) -> None:
    """Refuse quantised weights where the libraries have none.

    Raises:
        ConfigError: for MPS, convolutions and stacked experts.
    """
    if kind not in QUANTISERS:
        return
    if device.type == "mps":
        raise ConfigError(f"{option} {kind}: kernels are for CUDA and CPUs only; leave it out, or use --device cpu")
    for group in groups:
        if group.kind == "channel" or group.kind in EXPERTS:
            what = "convolutions" if group.kind == "channel" else "stacked experts"
            raise ConfigError(f"{option} {kind}: {group.name!r} has {what}, which are not quantised; leave it out")


def load_job(config: PruneConfig | FinetuneConfig) -> Job:
    """Check and load model, processor and data."""
    task, data = check_job(config)
    device = choose_device(config.device)
    original = load_config(config.model, trust_remote_code=config.trust_remote_code)
    dtype = choose_dtype(config.dtype, device, original.dtype)
    described = copy.deepcopy(original)
    described.update(dict(data.values))
    quantisation = None
    if config.quantize != "none":
        quantisation = Quantisation(config.quantize, frozenset(linear_paths(find_groups(described))))
    model, new = load_with_head(
        config.model, task.head, device=device, dtype=dtype, trust_remote_code=config.trust_remote_code,
        values=data.values, new=task.new, seed=config.seed, quantisation=quantisation,
    )  # fmt: skip
    if new:
        logger.info("new and trained whole, as the checkpoint has no such head: %s", ", ".join(new))
    if config.dtype == "auto" and model.dtype == torch.bfloat16 and device.type == "cpu" and not new:
        settle_precision_(model, task, data, config.batch)
        dtype = model.dtype
    groups = find_groups(model.config)
    check_groups(model, groups)
    dense_config = copy.deepcopy(model.config)
    if new and isinstance(config, PruneConfig) and config.teacher != "none":
        raise ConfigError(
            f"--teacher {config.teacher}: the dense model's {new[0]} is new and knows nothing: tune it first with "
            "`loraprune finetune`, and name that folder as --model"
        )
    if new and config.dtype == "float16":
        raise ConfigError(
            f"--dtype float16: {new[0]} is new and would be trained in 16 bits; use --dtype bfloat16 or float32"
        )
    stored = original.dtype if config.dtype == "auto" and isinstance(original.dtype, torch.dtype) else model.dtype
    noise = None if quantisation else rounding_noise(model, probe_of(model))
    return Job(
        config, device, dtype, model.dtype, stored, model, task, data, new, groups, dense_config, model.num_parameters(),
        quantisation, noise,
    )  # fmt: skip


def free(job: Job) -> None:
    """Let go of the model in memory."""
    del job.model
    gc.collect()
    if job.device.type == "cuda":
        torch.cuda.empty_cache()
