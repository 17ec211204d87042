"""The command `plan`: predict shapes, size, memory and FLOPs of a pruning run from the configuration, without loading weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from transformers import PreTrainedModel

from loraprune.commands.inspect import Description, count_layers
from loraprune.config.commands import KNOWN, PlanConfig
from loraprune.families import positions
from loraprune.families.depth import gone_layers, shallower
from loraprune.groups import layer_of
from loraprune.models.known_shapes import published
from loraprune.models.layerwise.modeling_loraprune import TYPE_PREFIX
from loraprune.models.layerwise.register import stock_of
from loraprune.models.saving import config_sizes, layer_sizes, stock_config
from loraprune.pruning.allocation import Counts, Space
from loraprune.pruning.preview import Preview, preview
from loraprune.runtime.memory import available_memory_bytes
from loraprune.training.footprint import GPUS, Setting, dtype_of, footprints, gpus_needed, on_each_gpu

ADAPTERS = ("lora", "gradients", "optimiser")
"""parts of memory that belong to the trained parameters"""


def dry_run(options: PlanConfig) -> Description:
    """Predict shapes, parameters, file size, memory and FLOPs of a pruning run; for `known`, of all known models.

    Raises:
        PlanError: if the target cannot be reached.
    """
    if options.model == KNOWN:
        return Description({"models": [predict(replace(options, model=name)) for name in published()]})
    return Description(predict(options))


def predict(options: PlanConfig) -> dict[str, Any]:
    """Return the predictions for one model; with several sizes those of the smallest, and of each in `sizes`."""
    if options.sizes is not None:
        each = [{"size": size, **predict(options.of_size(size))} for size in options.all_sizes]
        return {**each[-1], "sizes": each}
    aim = preview(options)
    config, space, counts, dense = aim.config, aim.target.space, aim.target.counts, aim.dense_parameters
    pruned = (
        aim.model.num_parameters()
        - space.budget.prunable
        + space.budget.kept(counts)
        - _beside_units(aim.model, space, counts)
    )
    sizes = config_sizes(space.groups, counts)
    stock = stock_config(shallower(config, counts), sizes) if sizes is not None else None
    if sizes and (gone := gone_layers(counts)):
        sizes = {"num_hidden_layers": count_layers(config, space.groups) - len(gone)} | sizes
    bytes_each = dtype_of(options.dtype).itemsize
    return {
        "model": options.model, "family": config.model_type,
        "ratio_requested": None if options.has_dimensions else aim.target.ratio,
        "ratio_reached": space.budget.ratio(counts), "ratio_of_whole_model": 1 - pruned / dense,
        "target": options.other_targets, "reached": dict(aim.target.reached(counts)),
        "parameters": {"dense": dense, "pruned": pruned, "prunable_dense": space.budget.prunable,
                       "prunable_pruned": space.budget.kept(counts)},
        "vocabulary": config.get_text_config().vocab_size if options.most_tokens else None,
        "kinds": list(space.by_kind()),
        "shapes": sizes or layer_sizes(space.groups, counts),
        "saved_as": stock.model_type if stock else TYPE_PREFIX + stock_of(config).model_type,
        "file_bytes": {"dense": dense * bytes_each, "pruned": pruned * bytes_each},
        "machine_memory_bytes": available_memory_bytes(),
    } | _footprint(aim, options)  # fmt: skip


def _beside_units(model: PreTrainedModel, space: Space, counts: Counts) -> int:
    """Return how many parameters of removed layers belong to no unit: norms, and biases that no unit owns."""
    layers = gone_layers(counts)
    owned = sum(space.budget.unit_parameters[g.name] * g.units for g in space.groups if layer_of(g) in layers)
    return sum(p.numel() for layer in layers for p in model.get_submodule(layer).parameters()) - owned


def _footprint(aim: Preview, options: PlanConfig) -> dict[str, Any]:
    """Return memory and FLOPs of a step per GPU, before and after pruning."""
    setting = Setting(
        dtype_of(options.dtype), options.quantize, options.checkpointing, options.accumulate, options.teacher
    )
    length = min(options.length, positions(aim.config) or options.length)
    both = footprints(
        aim.model, aim.every, aim.target.counts, aim.task.probe(aim.config, options.batch, length), options=options, setting=setting,
        in_play=aim.target.groups,
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
