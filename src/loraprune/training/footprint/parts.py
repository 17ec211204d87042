"""The cost of a step before and after pruning, by purpose.

Knows nothing about GPUs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from loraprune.config.base import Quantize
from loraprune.config.pruning import LoRAPruneConfig
from loraprune.errors import ConfigError
from loraprune.evaluation.tasks import Inputs
from loraprune.groups import Group, consumers, layer_of
from loraprune.models.adapters import STACKS, attach_lora, base_model, find_module
from loraprune.models.compat import enable_checkpointing
from loraprune.models.opening import quiet
from loraprune.pruning.recovery.changes import change_bytes
from loraprune.pruning.recovery.end_to_end import TOKENS
from loraprune.pruning.surgery import slice_
from loraprune.pruning.target import decide_recovery
from loraprune.scoring import make_scorer
from loraprune.scoring.criteria import Saliency, criteria
from loraprune.training.footprint.gpus import Blocks
from loraprune.training.footprint.precision import bytes_per_weight
from loraprune.training.footprint.repeats import find_repeats
from loraprune.training.footprint.step import Labels, labels_for, run_step

ADAM_STATES = 2
"""moments that AdamW keeps of every trained parameter, in its precision"""


@dataclass(frozen=True, slots=True)
class Footprint:
    """The peak memory of one GPU. Each part is its share of that peak."""

    parts: Mapping[str, int]
    """weights, lora, gradients, optimiser, activations, logits; where there are any: criterion, teacher, compensation, reconstruction"""
    blocks: Blocks
    trained: int
    """bytes of all trained parameters, which are those of their gradients"""
    flops: int
    """of one micro-batch, forward and backward"""

    @property
    def total(self) -> int:
        """Return the bytes at the peak."""
        return sum(self.parts.values())


@dataclass(frozen=True, slots=True)
class Footprints:
    """Before and after pruning."""

    dense: Footprint
    pruned: Footprint


@dataclass(frozen=True, slots=True)
class Setting:
    """How a step is run."""

    dtype: torch.dtype
    quantize: Quantize = "none"
    checkpointing: bool = False
    micro_batches: int = 1
    teacher: str = "none"
    """`copy` or `cache`, as in --teacher"""
    cpu: bool = False
    """count the tensors that a CPU keeps; otherwise those that a GPU keeps"""


def footprints(
    model: PreTrainedModel, groups: Sequence[Group], counts: Mapping[str, int], inputs: Inputs, *, options: LoRAPruneConfig,
    setting: Setting, in_play: Sequence[Group] | None = None,
) -> Footprints:  # fmt: skip
    """Predict a step of a model on the meta device, whole and with so many units of its groups (by name; others stay as they are).

    `in_play` are the groups that `counts` names, where it counts other units than those of `groups`: query heads.

    Modifies `model`: it has adapters and is cut afterwards.

    Raises:
        ConfigError: for experts in float32.
    """
    stacked = any(span.side in STACKS for group in groups for span in group.spans)
    if stacked and setting.dtype == torch.float32:
        raise ConfigError("--dtype float32: experts can be planned in 16 bits only; leave it out for bfloat16")
    for parameter in model.parameters():
        parameter.data = parameter.data.to(setting.dtype)
    with torch.device("meta"), quiet():
        adapted = attach_lora(
            model, groups, rank=options.rank, alpha=options.alpha, dropout=options.dropout, seed=options.seed,
            kind="dora" if options.adapter == "dora" else "lora",  # others have LoRA's shapes
        )  # fmt: skip
    for layer in (each for each in adapted.modules() if hasattr(each, "layerdrop")):
        setattr(layer, "layerdrop", 0.0)  # noqa: B010  # one that is skipped at random is counted as there
    if setting.checkpointing:
        enable_checkpointing(adapted)
    in_play = in_play or [group for group in groups if group.name in counts]
    repeats = find_repeats(base_model(adapted), _layer_lists(groups))
    with repeats.shortened(base_model(adapted)) if repeats else nullcontext():
        labels = labels_for(adapted, inputs)
    dense = _footprint(adapted, in_play, inputs, labels, options, setting, teacher=setting.teacher)
    with torch.device("meta"):
        smaller = slice_(adapted, in_play, {name: range(count) for name, count in counts.items()})
    return Footprints(dense, _footprint(adapted, smaller, inputs, labels, options, setting, teacher="none"))


def _footprint(
    model: nn.Module, groups: Sequence[Group], inputs: Inputs, labels: Labels, options: LoRAPruneConfig, setting: Setting, *, teacher: str
) -> Footprint:  # fmt: skip
    weights = weight_bytes(model, setting)
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    run = partial(
        run_step, model, inputs, micro_batches=setting.micro_batches, cpu=setting.cpu, labels=labels,
        repeats=find_repeats(base_model(model), _layer_lists(groups)),
    )  # fmt: skip
    step = run()
    parts = {"weights": weights, "lora": trained, "gradients": 0, "optimiser": ADAM_STATES * trained} | dict(step.peak)
    parts["activations"] += dequantised_bytes(model, setting)
    criterion = criteria.get(options.chosen_criterion)
    if not isinstance(criterion, Saliency):  # which look at gradients when activations are gone
        with torch.device("meta"):
            scorer = make_scorer(criterion, model, groups, power=options.power, normalize=options.normalize, seed=0)
        watched = run(scorer=scorer)
        scorer.close()
        parts["criterion"] = max(0, watched.total - step.total)
    if teacher != "none":
        taught = run(teacher=base_model(model) if teacher == "copy" else "cache")
        parts["teacher"] = max(0, taught.total - step.total) + (weights if teacher == "copy" else 0)
    recovery = decide_recovery(groups, options)
    still = parts["weights"] + parts["lora"] + parts["optimiser"] + parts.get("teacher", 0)
    if recovery.compensate:
        parts["compensation"] = max(0, still + refit_bytes(model, groups, options.calibration) - sum(parts.values()))
    if recovery.end_to_end != 0 and setting.quantize == "none":  # else LoRA's factors are trained, as in a step
        changes = change_bytes(model, groups) + round(rows_share(inputs) * (parts["activations"] + parts["logits"]))
        parts["reconstruction"] = max(0, still + changes - sum(parts.values()))
    layers = [base_model(model).get_submodule(path) for path in {layer_of(group) for group in groups} if path]
    whole = undivided_bytes(model, setting)
    inside = [weight_bytes(layer, setting) - undivided_bytes(layer, setting) for layer in layers]
    blocks = Blocks(max(inside, default=0), weights - whole - sum(inside), whole)
    return Footprint(parts, blocks, trained, step.flops)


def _layer_lists(groups: Sequence[Group]) -> set[str]:
    """Return the paths of the lists that hold the layers of groups."""
    return {path.rpartition(".")[0] for path in map(layer_of, groups) if path}


def quantised(model: nn.Module) -> list[nn.Linear]:
    """Return the linear layers that a quantised base has in fewer bits: all but adapters and what is outside of blocks."""
    base = base_model(model)
    head = base.get_output_embeddings() if isinstance(base, PreTrainedModel) else None
    return [
        layer
        for layer in model.modules()
        if isinstance(layer, nn.Linear) and layer is not head and not layer.weight.requires_grad
    ]


def dequantised_bytes(model: nn.Module, setting: Setting) -> int:
    """Return the bytes of the largest quantised weight while it is multiplied, in the precision of computation."""
    if setting.quantize == "none":
        return 0
    return max(layer.weight.numel() for layer in quantised(model)) * setting.dtype.itemsize


def undivided_bytes(model: nn.Module, setting: Setting) -> int:
    """Return the bytes of the quantised weights, which FSDP does not shard."""
    layers = quantised(model) if setting.quantize != "none" else []
    return round(sum(
        layer.weight.numel() * bytes_per_weight(setting.quantize, setting.dtype, columns=layer.in_features) for layer in layers
    ))  # fmt: skip


def weight_bytes(model: nn.Module, setting: Setting) -> int:
    """Return the bytes of everything in a model that is not trained."""
    coded = {id(layer.weight) for layer in quantised(model)} if setting.quantize != "none" else set()
    plain = [weight for weight in model.parameters() if not weight.requires_grad and id(weight) not in coded]
    return undivided_bytes(model, setting) + sum(
        each.numel() * each.element_size() for each in (*plain, *model.buffers())
    )


def rows_share(inputs: Inputs) -> float:
    """Return the tokens of a step of end-to-end reconstruction as a fraction of those of a micro-batch."""
    shape = next(iter(inputs.values())).shape
    return min(1.0, TOKENS / shape.numel() if len(shape) == 2 else 1 / shape[0])


def refit_bytes(model: nn.Module, groups: Sequence[Group], tokens: int) -> int:
    """Return the bytes of the least-squares reconstruction of the largest reading projection on so many tokens, in float32.

    Two matrices of second moments; inputs and their kept part, goal and error; the weight, its kept part and the change.
    """
    sizes = []
    for span in (span for group in groups for span in consumers(group)):
        layer: Any = find_module(model, span.module)
        rows, columns = layer.out_features, layer.in_features
        sizes.append(4 * (2 * columns**2 + 2 * tokens * (columns + rows) + 3 * rows * columns))
    return max(sizes, default=0)
