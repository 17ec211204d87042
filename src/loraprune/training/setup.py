"""Check the inputs of a run before any weights are read, and load its model. Everything that is wrong is reported at once."""

from __future__ import annotations

import copy
import gc
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils.import_utils import is_accelerate_available

from loraprune.config.base import QUANTISERS, missing_quantiser, rounding_problem
from loraprune.config.training import FinetuneConfig, PruneConfig
from loraprune.data import draw_rows
from loraprune.errors import ConfigError, Findings
from loraprune.evaluation.apart import with_rows_apart
from loraprune.evaluation.precision import rounding_noise, settle_precision_
from loraprune.evaluation.tasks import Prepared, Request, Task, choose_task, probe_of
from loraprune.families import find_groups
from loraprune.groups import EXPERTS, Group, layer_of
from loraprune.models.adapters import linear_paths
from loraprune.models.empty import empty_model
from loraprune.models.loading import load_with_head
from loraprune.models.quantised import Quantisation
from loraprune.models.streaming import streamed_folder
from loraprune.preflight import NEEDS, check_data, check_model
from loraprune.pruning.adapters import check_adapter
from loraprune.pruning.deployment import Deployment
from loraprune.pruning.method import Goal, PruningMethod, find_goal
from loraprune.pruning.surgery import check_groups
from loraprune.runtime import launch
from loraprune.runtime.device import check_compile, check_training, choose_device, choose_dtype
from loraprune.scoring.criteria import Saliency, criteria
from loraprune.training.tokens import Tokens, choose_vocabulary

LEAVES_WHOLE = "1.11"
"""the first accelerate that respects `ignored_modules` with FSDP2"""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunSetup:
    """The inputs of a run, checked before any weights are read. Immutable."""

    config: PruneConfig | FinetuneConfig
    device: torch.device
    dtype: torch.dtype | None
    """precision that is asked for; None for the checkpoint's"""
    task: Task
    data: Prepared
    original: PreTrainedConfig
    """the checkpoint's configuration"""
    groups: tuple[Group, ...]
    """all groups of the dense model"""
    goal: Goal | None
    """what is to be removed; None for plain fine-tuning"""
    quantisation: Quantisation | None
    """how the frozen weights are held while training"""
    quantisable: frozenset[str]
    """paths of the layers that a teacher may hold in 8 bits; none without the library, or kernels for this device and model"""
    place: str
    """where the dense model is: --model, or with --vocabulary the one with fewer tokens"""
    tokens: Tokens | None
    """the tokens to keep, where the vocabulary is to be cut"""

    def load_dense(
        self, dtype: torch.dtype | None, *, quantisation: Quantisation | None = None
    ) -> tuple[PreTrainedModel, tuple[str, ...]]:
        """Return the dense model, and the modules that the checkpoint lacks: they are drawn by the seed, alike at every call."""
        config = self.config
        return load_with_head(
            self.place, self.task.head, device=self.device, dtype=dtype, trust_remote_code=config.trust_remote_code,
            original=self.original, values=self.data.values, new=self.task.new, seed=config.seed, quantisation=quantisation,
            streamed=config.is_streamed,
        )  # fmt: skip

    def load_saved(self, folder: Path, dtype: torch.dtype) -> PreTrainedModel:
        """Return the model that the run wrote into a folder."""
        return load_with_head(
            str(folder), self.task.head, device=self.device, dtype=dtype, streamed=self.config.is_streamed
        )[0]


@dataclass(frozen=True, slots=True)
class DenseFacts:
    """Facts about the dense model, which is not kept in memory."""

    config: PreTrainedConfig
    parameters: int
    dtype: torch.dtype
    """precision of computation"""
    stored: torch.dtype
    """precision to save in: the checkpoint's, unless one is asked for"""
    new: tuple[str, ...]
    """modules that the checkpoint lacks: randomly initialised, and trained without LoRA"""
    noise: float | None
    """rounding noise in the precision of computation; None if the model is quantised or memory is too short"""
    vocabulary: Mapping[str, Any] | None = None
    """what a cut of its vocabulary kept, as the report has it; None without one"""


@dataclass(slots=True)
class RunModel:
    """The one model that a run holds: dense, then with LoRA, then merged, then as the folder gives it."""

    model: PreTrainedModel
    dense: DenseFacts
    adapted: PeftModel | None = None
    """the same model with LoRA, from the end of training until it is merged"""
    pruner: PruningMethod | None = None
    """the method that removed units or weights during training"""

    def free(self) -> None:
        """Drop the references to the model, so that its memory can be freed."""
        device = self.model.device
        del self.model
        self.adapted = None
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def check_run(config: PruneConfig | FinetuneConfig) -> RunSetup:
    """Check all inputs of a run, without weights.

    Raises:
        LoraPruneError: for everything that is wrong, at once.
    """
    found, trust = Findings(), config.trust_remote_code
    device = torch.device("cpu")
    with found.check():
        criteria.get(config.pruning().chosen_criterion)
    with found.check():
        device = choose_device(config.device)
        check_training(config.dtype, config.optimizer, device)
    if config.compile:
        with found.check():
            check_compile(device)
            check_graph(config.pruning().chosen_criterion)
    if config.is_streamed:
        with found.check():
            check_streaming(config.model)
    original = check_model(config.model, NEEDS["prune"], found, trust_remote_code=trust)
    if found.errors or original is None:
        check_data(
            config.model,
            original,
            config.data,
            config.eval,
            found,
            task=config.task,
            columns=config.roles(),
            trust_remote_code=trust,
        )
        found.raise_all()
    assert original is not None
    request = Request(
        config.model, original, config.data, config.eval, config.length, config.seed, trust, config.roles()
    )
    task = data = tokens = None
    with found.check():
        task = choose_task(original, config.task, data=config.data, columns=config.roles())
        data = task.prepare(request)
        tokens = choose_vocabulary(config, request, data)
        data = replace(data, train=draw_rows(data.training, config.rows, seed=config.seed))
    groups: tuple[Group, ...] = ()
    goal: Goal | None = None
    with found.check():
        groups, goal = check_goal(config, original, task, data, device=device, tokens=tokens)
    found.raise_all()
    assert task is not None
    assert data is not None
    task = with_rows_apart(task, seed=config.seed) if config.held_out_apart else task
    return RunSetup(
        config, device, choose_dtype(config.dtype, device, original.dtype), task, data, original, groups, goal,
        quantisation=None if config.quantize == "none" else Quantisation(config.quantize, frozenset(linear_paths(groups))),
        quantisable=find_quantisable(config, groups, device), place=config.model, tokens=tokens,
    )  # fmt: skip


def check_goal(
    config: PruneConfig | FinetuneConfig,
    original: PreTrainedConfig,
    task: Task | None,
    data: Prepared | None,
    *,
    device: torch.device,
    tokens: Tokens | None = None,
) -> tuple[tuple[Group, ...], Goal | None]:
    """Return the groups of a model without weights and what is to be removed of it beside tokens, if it can be reached."""
    described = copy.deepcopy(original)
    described.update(dict(data.values) if data else {})
    groups = find_groups(described)
    empty = empty_model(described, head=task.head if task else None)
    check_groups(empty, groups)
    check_base(config.quantize, groups, device)
    if config.is_streamed and (odd := [group.name for group in groups if group.kind in EXPERTS or not layer_of(group)]):
        raise ConfigError(
            f"--base streamed: {odd[0]!r} is a stack of experts, or belongs to no single layer; leave it out"
        )
    check_adapter(config.adapter, empty, groups, quantize=config.quantize)
    if not isinstance(config, PruneConfig):
        return groups, None
    check_quantize("--teacher", config.teacher, groups, device)
    # Where the data are wrong, the error comes before anything is timed.
    deployment = Deployment.of_options(config.dtype, device, known=original.dtype, timed=data is not None)
    if tokens is None:
        return groups, find_goal(empty, config.pruning(), deployment=deployment)
    smaller = empty_model(tokens.choice.config(described), head=task.head if task else None)
    return groups, find_goal(smaller, config.pruning(), dense=empty, deployment=deployment)


def check_streaming(model: str) -> None:
    """Refuse --base streamed for models that cannot be read block by block.

    Raises:
        ConfigError: for one that is not in a folder, and for several processes.
    """
    streamed_folder(model)
    if launch.count() > 1:
        raise ConfigError("--base streamed: it runs in a single process; start `loraprune` without a launcher")


def check_graph(criterion: str) -> None:
    """Refuse --compile for a criterion that scores by hooks.

    Raises:
        ConfigError: for such a criterion.
    """
    if not isinstance(criteria.get(criterion), Saliency):
        raise ConfigError(
            f"--compile true --criterion {criterion}: it scores by hooks, each of which is a separate graph, more "
            "than torch.compile keeps; use lora, or leave --compile out"
        )


def check_base(kind: str, groups: Sequence[Group], device: torch.device) -> None:
    """Refuse a quantised base where it cannot be held.

    Raises:
        ConfigError: as `check_quantize`, and for FSDP by an accelerate that can leave no layer whole.
    """
    if launch.is_sharded() and kind != "none" and not is_accelerate_available(LEAVES_WHOLE):
        raise ConfigError(
            f"--quantize {kind}: FSDP must leave quantised layers unsharded, which this accelerate does not support; "
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
        raise ConfigError(f"{option} {kind}: its kernels are for CUDA and CPUs only; leave it out, or use --device cpu")
    for group in groups:
        if group.kind == "channel" or group.kind in EXPERTS:
            what = "convolutions" if group.kind == "channel" else "stacked experts"
            raise ConfigError(f"{option} {kind}: {group.name!r} has {what}, which are not quantised; leave it out")


def find_quantisable(
    config: PruneConfig | FinetuneConfig, groups: Sequence[Group], device: torch.device
) -> frozenset[str]:
    """Return the paths of the layers that a teacher may hold in 8 bits."""
    try:
        check_quantize("--teacher", "8bit", groups, device)
    except ConfigError:
        return frozenset()
    if rounding_problem(config.model, "--teacher", "8bit") or missing_quantiser("8bit"):
        return frozenset()
    return frozenset(linear_paths(groups))


def load_run(setup: RunSetup) -> RunModel:
    """Load the dense model of a run.

    Raises:
        ConfigError: for a module that the checkpoint lacks, where options need a trained one.
    """
    config = setup.config
    model, new = setup.load_dense(setup.dtype, quantisation=setup.quantisation)
    if new:
        logger.info("randomly initialised and fully trained, as the checkpoint has no such head: %s", ", ".join(new))
    if (
        not config.is_streamed
        and config.dtype == "auto"
        and model.dtype == torch.bfloat16
        and setup.device.type == "cpu"
        and not new
    ):
        settle_precision_(model, setup.task, setup.data, config.batch)
    check_groups(model, setup.groups)
    if new and isinstance(config, PruneConfig) and config.teacher != "none":
        raise ConfigError(
            f"--teacher {config.teacher}: the dense model's {new[0]} is untrained: tune it first with "
            "`loraprune finetune`, and name that folder as --model"
        )
    if new and config.dtype == "float16":
        raise ConfigError(
            f"--dtype float16: {new[0]} is new and would be trained in 16 bits; use --dtype bfloat16 or float32"
        )
    if config.is_streamed:
        logger.info(
            "--base streamed: one layer is in memory at a time; left out, because they need the whole model: end-to-end reconstruction, "
            "the measured split, example texts and speed"
        )
    known = setup.original.dtype
    stored = known if config.dtype == "auto" and isinstance(known, torch.dtype) else model.dtype
    noise = None if setup.quantisation else rounding_noise(model, probe_of(model))
    return RunModel(
        model, DenseFacts(copy.deepcopy(model.config), model.num_parameters(), model.dtype, stored, new, noise)
    )
