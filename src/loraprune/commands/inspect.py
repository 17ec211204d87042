"""Looking before training: what a model's groups are, and what a run would give, from the configuration alone.

Reads no weights. Knows nothing about data.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from loraprune.config.commands import KNOWN, InspectConfig, PlanConfig
from loraprune.config.pruning import LoRAPruneConfig
from loraprune.config.training import PruneConfig
from loraprune.evaluation.tasks import Task, find_task
from loraprune.families import find_groups, positions
from loraprune.families.depth import gone_layers, shallower
from loraprune.groups import Group, layer_of
from loraprune.models.empty import empty_model
from loraprune.models.known_shapes import published, published_config
from loraprune.models.layerwise.modeling_loraprune import TYPE_PREFIX
from loraprune.models.layerwise.register import stock_of
from loraprune.models.loading import load_config
from loraprune.models.saving import config_sizes, layer_sizes, stock_config, storable_kinds
from loraprune.pruning.allocation import Counts, Space
from loraprune.pruning.surgery import check_groups
from loraprune.pruning.target import goal_counts, groups_in_play, make_space, target_ratio
from loraprune.runtime.memory import available_memory_bytes
from loraprune.training.footprint import GPUS, Setting, dtype_of, footprints, gpus_needed, on_each_gpu

LAYERWISE_WORDS = (
    "any widths, also of single layers: loraprune.from_pretrained, or plain transformers with trust_remote_code=True"
)
NEVER_PRUNED = ["embeddings", "output head", "norms", "residual stream"]
ADAPTERS = ("lora", "gradients", "optimiser")
"""parts of memory that trained parameters bring with them"""


@dataclass(frozen=True, slots=True)
class Description:
    """An answer about a model, ready for JSON."""

    values: dict[str, Any]


def inspect(options: InspectConfig) -> Description:
    """Describe the groups of a model.

    Raises:
        UnsupportedModelError: if no family knows it.
    """
    config = published_config(options.model) or load_config(options.model, trust_remote_code=options.trust_remote_code)
    groups = find_groups(config)
    model = empty_model(config, head=find_task(config, options.task).head)
    check_groups(model, groups)
    space = make_space(model, groups, LoRAPruneConfig())
    total = model.num_parameters()
    kinds, storable = [], storable_kinds(config, groups)
    for where, members in _alike(groups).items():
        first = members[0]
        kinds.append({
            "kind": first.kind, "where": where, "groups": len(members), "units": _units(members), "stock": first.kind in storable,
            "parameters_a_unit": space.budget.unit_parameters[first.name],
            "parameters": space.budget.prunable - space.budget.kept({**space.budget.units, **{g.name: 0 for g in members}}),
            "spans": list(dict.fromkeys(f"{_inside(s.module, first)} {s.side} x{s.width}" for s in first.spans)),
        })  # fmt: skip
    return Description({
        "model": options.model, "family": config.model_type, "layers": _layers(config, groups), "parameters": total,
        "prunable": space.budget.prunable, "prunable_fraction": space.budget.prunable / total, "kinds": kinds,
        "formats": {"stock": _stock_words(config, groups), "layerwise": LAYERWISE_WORDS},
        "never_pruned": ["output head"] if "channel" in storable else NEVER_PRUNED,
    })  # fmt: skip


NUMBER = re.compile(r"\b\d+(?=\.|$)")


def _alike(groups: tuple[Group, ...]) -> dict[str, tuple[Group, ...]]:
    """Return groups that differ in their layer alone, by their name with stars for numbers."""
    found: dict[str, tuple[Group, ...]] = {}
    for group in groups:
        where = NUMBER.sub("*", group.name)
        found[where] = (*found.get(where, ()), group)
    return found


def _inside(module: str, group: Group) -> str:
    """Return the path of a module below its group, with stars for the layers of a group that spans some, or below its layer."""
    if module.startswith(f"{group.name}."):
        return NUMBER.sub("*", module.removeprefix(f"{group.name}."))
    layer = layer_of(group)
    return module.removeprefix(f"{layer}.") if layer else module


def _layers(config: PreTrainedConfig, groups: tuple[Group, ...]) -> int:
    """Return how many layers a model has, in all stacks together, also where it has stages."""
    depths: Sequence[int] | None = getattr(config, "depths", None)
    return sum(depths) if depths else len({layer_of(group) for group in groups} - {None}) or 1


def _units(members: tuple[Group, ...]) -> int | list[int]:
    """Return the units of each group: one number where all have the same."""
    units = [group.units for group in members]
    return units[0] if len(set(units)) == 1 else units


def _stock_words(config: PreTrainedConfig, groups: tuple[Group, ...]) -> str:
    """Say which widths plain `from_pretrained` can load."""
    uneven = {group.kind for group in groups if any(o.kind == group.kind and o.units != group.units for o in groups)}
    if uneven and config.model_type.startswith(TYPE_PREFIX):
        return "only equal widths in all layers, which these are not"
    storable = storable_kinds(config, groups)
    if not storable:
        return "no smaller widths: this model type has no key for them"
    words, other = [], set()
    for kind in dict.fromkeys(group.kind for group in groups):
        members = [group for group in groups if group.kind == kind]
        if kind in uneven:
            words.append(f"any fraction of the {kind} units" if kind in storable else f"all {kind} units")
        elif kind == "ffn":
            words.append("any FFN width" if kind in storable else "the full FFN width")
        elif kind not in storable:
            words.append(f"all {members[0].units} units of kind {kind}")
        else:
            good = []
            for units in range(1, members[0].units + 1):
                stock = stock_config(config, config_sizes(members, {group.name: units for group in members}) or {})
                if stock is not None:
                    good.append(units * members[0].sizes.get("num_attention_heads", 1))
                    other |= {stock.model_type} - {config.model_type}
            words.append(f"{good} " + ("query heads" if kind == "attention" else f"units of kind {kind}"))
    refused = f"; saved as {', '.join(sorted(other))} where {config.model_type} refuses the head count" if other else ""
    return f"{' and '.join(reversed(words))}, the same in all layers{refused}"


def dry_run(options: PlanConfig) -> Description:
    """Predict shapes, parameters, file size, memory and FLOPs of a pruning run; of all well-known models for `known`.

    Raises:
        PlanError: if the target cannot be reached.
    """
    if options.model == KNOWN:
        return Description({"models": [predict(replace(options, model=name)) for name in published()]})
    return Description(predict(options))


def predict(options: PlanConfig) -> dict[str, Any]:
    """Return what `plan` says about one model."""
    aim = _aim(options)
    config, space, counts, dense = aim.config, aim.space, aim.counts, aim.model.num_parameters()
    pruned = dense - space.budget.prunable + space.budget.kept(counts) - _beside_units(aim.model, space, counts)
    sizes = config_sizes(space.groups, counts)
    stock = stock_config(shallower(config, counts), sizes) if sizes is not None else None
    if sizes and (gone := gone_layers(counts)):
        sizes = {"num_hidden_layers": _layers(config, space.groups) - len(gone)} | sizes
    bytes_each = dtype_of(options.dtype).itemsize
    return {
        "model": options.model, "family": config.model_type,
        "ratio_requested": None if options.has_dimensions else target_ratio(space, options, model_parameters=dense),
        "ratio_reached": space.budget.ratio(counts), "ratio_of_whole_model": 1 - pruned / dense,
        "parameters": {"dense": dense, "pruned": pruned, "prunable_dense": space.budget.prunable,
                       "prunable_pruned": space.budget.kept(counts)},
        "kinds": list(space.by_kind()),
        "shapes": sizes or layer_sizes(space.groups, counts),
        "saved_as": stock.model_type if stock else TYPE_PREFIX + stock_of(config).model_type,
        "file_bytes": {"dense": dense * bytes_each, "pruned": pruned * bytes_each},
        "machine_memory_bytes": available_memory_bytes(),
    } | _footprint(aim, options)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Aim:
    """A model without weights and the units it is to keep."""

    config: PreTrainedConfig
    task: Task
    model: PreTrainedModel
    every: tuple[Group, ...]
    space: Space
    counts: Counts


def _aim(options: PlanConfig | PruneConfig) -> _Aim:
    config = published_config(options.model) or load_config(options.model, trust_remote_code=options.trust_remote_code)
    task, groups = find_task(config, options.task), find_groups(config)
    model = empty_model(config, head=task.head)
    check_groups(model, groups)
    space = make_space(model, groups_in_play(config, groups, options), options)
    return _Aim(
        config, task, model, groups, space, goal_counts(space, options, model_parameters=model.num_parameters())
    )


def requested_ratio(options: PruneConfig) -> float:
    """Return the ratio of prunable parameters that a run is to remove, without weights.

    Raises:
        PlanError: if it cannot be reached.
    """
    aim = _aim(options)
    return target_ratio(aim.space, options, model_parameters=aim.model.num_parameters())


def _beside_units(model: PreTrainedModel, space: Space, counts: Counts) -> int:
    """Return the parameters that go with whole layers beside those of their units: norms, and biases that no unit owns."""
    layers = gone_layers(counts)
    owned = sum(space.budget.unit_parameters[g.name] * g.units for g in space.groups if layer_of(g) in layers)
    return sum(p.numel() for layer in layers for p in model.get_submodule(layer).parameters()) - owned


def _footprint(aim: _Aim, options: PlanConfig) -> dict[str, Any]:
    """Return memory and FLOPs of a step, for every GPU, before and after pruning."""
    setting = Setting(
        dtype_of(options.dtype), options.quantize, options.checkpointing, options.accumulate, options.teacher
    )
    length = min(options.length, positions(aim.config) or options.length)
    both = footprints(
        aim.model, aim.every, aim.counts, aim.task.probe(aim.config, options.batch, length), options=options, setting=setting
    )  # fmt: skip
    dense, pruned = (
        on_each_gpu(one.parts, one.blocks, trained=one.trained, gpus=options.gpus, sharding=options.sharding)
        for one in (both.dense, both.pruned)
    )
    adapters = sum(dense[name] for name in ADAPTERS)
    before = {"weights": dense["weights"], "adapters_and_optimiser": adapters}
    before |= {name: size for name, size in dense.items() if name not in (*before, *ADAPTERS)}
    return {
        "training_memory_bytes": before | {"total": sum(dense.values())},
        "memory_bytes": {"dense": dense | {"total": sum(dense.values())}, "pruned": pruned | {"total": sum(pruned.values())}},
        "step_flops": {"dense": both.dense.flops * options.accumulate, "pruned": both.pruned.flops * options.accumulate},
        "gpus": {"count": options.gpus, "sharding": options.sharding, "needed": {
            str(gib): gpus_needed(both.dense.parts, both.dense.blocks, trained=both.dense.trained, gib=gib) for gib in GPUS
        }},
    }  # fmt: skip
