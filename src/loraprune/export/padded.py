"""`padded`: pruned weights at their places in the dense stock shapes, zeros where units were removed.

For loaders that support no other shapes. It loads wherever the dense model loads, and has the dense model's size and speed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from loraprune.config.export import ExportConfig
from loraprune.errors import CheckpointError, PlanError
from loraprune.evaluation.precision import difference, logits_of
from loraprune.evaluation.tasks import probe_of
from loraprune.export.base import Format, Source, formats, tokenizer_of
from loraprune.families import find_groups
from loraprune.families.depth import gone_layers
from loraprune.families.query_heads import as_planned
from loraprune.groups import Group
from loraprune.models.auto_classes import find_head
from loraprune.models.empty import empty_model, fill_empty_, save_tensors
from loraprune.models.loading import load_model
from loraprune.models.opening import resolve
from loraprune.models.saving import cast_weights_, config_sizes, stock_config
from loraprune.plan import Plan
from loraprune.pruning.verify import FLOOR, check_difference, fill_dense_


def write(source: Source, folder: Path) -> dict[str, Any]:
    """Write the dense stock shapes with zeros for removed units."""
    found = write_padded(source.model, Plan.read(source.folder), folder, dtype=source.dtype)
    if source.has_tokenizer:
        tokenizer_of(source).save_pretrained(folder)
    return {
        "verification": {"source_vs_exported": found},
        "verified_by": "plain transformers",
        "load": "AutoModelForCausalLM.from_pretrained(folder) of plain transformers, without a flag",
    }


def check(config: PreTrainedConfig, options: ExportConfig) -> None:
    """Raise a CheckpointError if the folder has no plan."""
    Plan.read(Path(resolve(options.model)))


def write_padded(model: PreTrainedModel, plan: Plan, folder: Path, *, dtype: torch.dtype) -> float:
    """Save a pruned `model` in the dense stock shapes of its `plan`, and load the result.

    A removed unit has no effect, as its columns of the consuming projection are zero; norms over all units are rescaled.

    Returns:
        The largest difference of logits between `model` and what plain transformers loads, relative to the largest.

    Raises:
        PlanError: if the plan lacks the dense stock shapes, or a removed unit cannot be silenced.
        CheckpointError: if the plan is another model's.
        VerificationError: if the saved model gives other outputs.
    """
    if gone := gone_layers({name: len(kept) for name, kept in plan.kept.items()}):
        raise PlanError(f"padding cannot restore a removed layer such as {gone[0]!r}; use the folder as it is")
    config = dense_config(model.config, plan)
    groups = as_planned([group for group in find_groups(config) if group.name in plan.kept], plan.parts)
    head = find_head(model.config)
    if any(group.kind == "expert" and len(plan.kept[group.name]) < group.units for group in groups):
        raise PlanError("padding cannot silence an expert: a router would still choose it; use the folder as it is")
    empty = empty_model(config, head=head)
    fill_empty_(empty, {name: torch.zeros(one.shape, dtype=model.dtype) for name, one in empty.state_dict().items()})
    fill_dense_(empty, model.state_dict(), groups, plan)
    cast_weights_(empty, dtype)
    save_tensors(
        config, empty.state_dict(), folder, dtype=dtype, generation=getattr(model, "generation_config", None), head=head
    )
    del empty
    probe = probe_of(model)
    reloaded = load_model(str(folder), device=model.device, dtype=model.dtype)
    found = difference(logits_of(model, probe), logits_of(reloaded, probe))
    _check_norms(groups, found, dtype, config)
    return check_difference("pruned and padded model", found, dtype)


def dense_config(config: PreTrainedConfig, plan: Plan) -> PreTrainedConfig:
    """Return the stock configuration of the dense model that a plan was made for, from a pruned one's.

    Raises:
        CheckpointError: if the plan is another model's.
        PlanError: if the plan was made for a model whose layers differed already.
    """
    every = as_planned(find_groups(config), plan.parts)
    unknown = next((group.name for group in every if group.name not in plan.kept and not group.whole), None)
    if unknown:
        raise CheckpointError(
            f"plan.json does not contain {unknown!r}, which has lost units: it belongs to another model"
        )
    groups = [group for group in every if group.name in plan.kept]  # others were not in play
    present = {group.name: group.units for group in groups}
    kept = {name: len(units) for name, units in plan.kept.items()}
    if present != kept:
        odd = next(name for name in sorted(present.keys() | kept.keys()) if present.get(name) != kept.get(name))
        raise CheckpointError(
            f"plan.json keeps {kept.get(odd)} units of {odd!r}, the model has {present.get(odd)}: it belongs to another model"
        )
    once = [replace(group, units=plan.units[group.name], whole=True) for group in groups]
    sizes = config_sizes(once, plan.units)
    dense = stock_config(config, sizes) if sizes is not None else None
    whole = as_planned(find_groups(dense), plan.parts) if dense is not None else ()
    if dense is None or any(group.units != plan.units.get(group.name, group.units) for group in whole):
        raise PlanError(
            "plan.json was made for a model whose layers differed in width already, so it does not say where units were in "
            "a stock model: export the folder of the first pruning"
        )
    return dense


def _check_norms(groups: Sequence[Group], found: float, dtype: torch.dtype, config: PreTrainedConfig) -> None:
    normed = any(span.side == "norm" for group in groups for span in group.spans)
    if normed and not found <= FLOOR[dtype]:
        raise PlanError(
            f"padding changes the logits by {found:.1e} of the largest: {config.model_type!r} has RMS norms over all units, whose "
            f"epsilon ({config.rms_norm_eps:g}) weighs less among zeros; use the folder as it is"
        )


formats.add("padded", Format(write, check))
