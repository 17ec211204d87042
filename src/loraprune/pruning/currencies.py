"""From a target in the user's terms to a ratio of the prunable parameters: one function for each kind of target.

Knows nothing about scores, nor how an allocation distributes a ratio.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from loraprune.config.pruning import LoRAPruneConfig
from loraprune.config.values import parse_bytes, parse_count
from loraprune.errors import ConfigError, PlanError
from loraprune.families import find_groups, positions
from loraprune.models.adapters import count_parameters
from loraprune.models.cache import cached_numbers
from loraprune.models.empty import empty_model, random_model
from loraprune.pruning.allocation import ALLOCATIONS, Counts, Space
from loraprune.pruning.deployment import Deployment, own_config
from loraprune.pruning.pace import NEW_TOKENS, Pace, expected_pace, timed_pace
from loraprune.runtime import launch

CACHED, PREFILLED = 4096, 256
"""tokens in the cache and in a timed prefill, if --context does not say"""
STEP = 1e-3
"""how exactly a ratio is searched for"""
TIMED_STEP = 0.02
"""the same where every trial is timed"""

Shape: TypeAlias = Callable[[float], Counts]
"""ratio -> units that every group keeps; raises a PlanError if it cannot be reached"""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Aim:
    """The ratio that meets a target."""

    ratio: float
    fits: Callable[[Counts], bool] | None = None
    """whether a shape of this ratio meets the target; None if all of them do"""
    reached: Callable[[Counts], Mapping[str, Any]] = lambda _: {}
    """shape -> figures for the report, beside the parameters"""


def find_aim(
    model: nn.Module,
    space: Space,
    config: LoRAPruneConfig,
    shape: Shape,
    *,
    dense: PreTrainedModel | None,
    deployment: Deployment | None,
) -> Aim:
    """Return the ratio of the prunable parameters that the options ask for.

    Args:
        model: The model to prune, with weights or without.
        space: What an allocation may choose from for it.
        config: The options.
        shape: The allocation.
        dense: The dense model without weights, where `model` is one with fewer tokens.
        deployment: How the pruned model is stored and run; by default as `model` is.

    Raises:
        ConfigError: if the model cannot be measured in this way.
        PlanError: if the model is larger or slower without all its units than what is asked for, or smaller or faster with them.
    """
    parameters, where = count_parameters(model), " with fewer tokens" if dense else ""
    if config.size is not None:
        wanted = round(config.size * (dense.num_parameters() if dense else parameters))
        asked = f"--size {100 * config.size:g}%"
        return Aim(linear_ratio(asked, wanted, parameters, space.budget.prunable, unit=f"parameters{where}"))
    if config.parameters is not None:
        asked, wanted = f"--parameters {config.parameters}", parse_count(config.parameters)
        return Aim(linear_ratio(asked, wanted, parameters, space.budget.prunable, unit=f"parameters{where}"))
    if config.file_size is None and config.memory is None and config.speedup is None:
        return Aim(config.ratio)
    use = deployment or Deployment.of_model(model)
    empty = empty_model(own_config(model))
    if config.file_size is not None:
        return by_file_size(config, space, empty, parameters, use)
    if config.memory is not None:
        return by_memory(config, space, empty, parameters, shape, use)
    return by_speed(config, space, empty, shape, dense, use)


def linear_ratio(asked: str, wanted: int, whole: int, prunable: int, *, unit: str) -> float:
    """Return the ratio by which `whole` becomes `wanted`; units own `prunable` of it.

    Raises:
        PlanError: if that is out of reach.
    """
    fixed = whole - prunable
    if not fixed < wanted <= whole:
        bound = f"more than {fixed:,}" if wanted <= fixed else f"at most {whole:,}"
        raise PlanError(
            f"{asked}: this model has {whole:,} {unit}, of which {fixed:,} ({100 * fixed / whole:.0f} %) are never pruned; choose {bound}"
        )
    return (whole - wanted) / prunable


def by_file_size(
    config: LoRAPruneConfig, space: Space, empty: PreTrainedModel, parameters: int, use: Deployment
) -> Aim:
    """Return the ratio at which the file of the weights has at most as many bytes as --file-size."""
    each, beside = use.stored.itemsize, bytes_beside(empty, use.stored)
    name = str(use.stored).removeprefix("torch.")
    ratio = linear_ratio(
        f"--file-size {config.file_size}", parse_bytes(str(config.file_size), "file-size"), each * parameters + beside,
        each * space.budget.prunable, unit=f"bytes of weights in {name}",
    )  # fmt: skip
    fixed = parameters - space.budget.prunable

    def reached(counts: Counts) -> dict[str, Any]:
        return {"file_bytes": each * (fixed + space.budget.kept(counts)) + beside, "dtype": name}

    return Aim(ratio + _shortfall(space, config), reached=reached)


def bytes_beside(empty: PreTrainedModel, dtype: torch.dtype) -> int:
    """Return the bytes of a safetensors file that are not parameters: at most so many in front of the tensors, and buffers."""
    state = empty.state_dict()
    end = dtype.itemsize * sum(tensor.numel() for tensor in state.values())
    head = {name: {"dtype": "BF16", "shape": [*t.shape], "data_offsets": [end, end]} for name, t in state.items()}
    buffers = sum(buffer.numel() for name, buffer in empty.named_buffers() if name in state)
    # The length of the header, the entry for metadata, and padding to eight bytes.
    return 8 + len(json.dumps(head)) + 64 + dtype.itemsize * buffers


def by_memory(
    config: LoRAPruneConfig, space: Space, empty: PreTrainedModel, parameters: int, shape: Shape, use: Deployment
) -> Aim:
    """Return the ratio at which weights and cache have at most as many bytes as --memory, whatever the split between units is.

    Raises:
        ConfigError: if the cache is not one of keys and values, or the model has fewer positions than --context.
        PlanError: if the target is out of reach.
    """
    asked, limit = f"--memory {config.memory}", parse_bytes(str(config.memory), "memory")
    tokens = _tokens(config, empty.config, CACHED)
    heads = [group for group in find_groups(empty.config) if group.kind == "attention"]
    cached = cached_numbers(empty, tokens)
    if cached is None or (cached and len(cached) != len(heads)):
        raise ConfigError(
            f"{asked}: the cache of this {empty.config.model_type!r} is not one of keys and values for each attention layer; use "
            "--file-size"
        )
    layers = dict(zip((group.name for group in heads), cached, strict=False))
    each, fixed = use.stored.itemsize, parameters - space.budget.prunable
    smaller = {group.name for group in space.groups if group.kind == "attention"}  # single query heads have no cache

    def reached(counts: Counts) -> dict[str, Any]:
        # A layer that is removed as a whole has no counts.
        kept = dict.fromkeys(space.budget.units, 0) | dict(counts)
        weights = each * (fixed + space.budget.kept(kept))
        cache = each * sum(
            numbers * kept[name] // space.budget.units[name] if name in smaller else numbers
            for name, numbers in layers.items()
        )
        return {
            "memory_bytes": weights + cache, "weight_bytes": weights, "cache_bytes": cache, "context": tokens,
            "dtype": str(use.stored).removeprefix("torch."),
        }  # fmt: skip

    def fits(counts: Counts) -> bool:
        return bool(reached(counts)["memory_bytes"] <= limit)

    whole, largest = reached(space.budget.units), largest_ratio(shape)
    least = reached(shape(largest))
    if not least["memory_bytes"] <= limit < whole["memory_bytes"]:
        raise PlanError(
            f"{asked}: this model takes {whole['memory_bytes']:,} bytes with {tokens} tokens of context, and {least['memory_bytes']:,} "
            f"without all units that can be removed (weights {least['weight_bytes']:,}, cache {least['cache_bytes']:,}); choose a size "
            "between the two"
        )
    _, found = bisect(lambda ratio: fits(shape(ratio)), largest, step=STEP)
    return Aim(min(largest, found + _shortfall(space, config)), fits, reached)


def by_speed(
    config: LoRAPruneConfig, space: Space, empty: PreTrainedModel, shape: Shape, dense: PreTrainedModel | None, use: Deployment
) -> Aim:  # fmt: skip
    """Return the smallest ratio of those tried at which the model is as many times as fast as --speedup says.

    Raises:
        ConfigError: if the model is not timed.
        PlanError: if the target is out of reach.
    """
    asked, phase = f"--speedup {config.speedup}", config.timed
    check_timed(asked, empty, phase)
    tokens = _tokens(config, empty.config, PREFILLED)
    what = f"decoding of {NEW_TOKENS} tokens" if phase == "decoding" else f"prefill of {tokens} tokens"
    if use.device is None:
        measure = expected_pace(dense or empty, empty, space.groups, phase=phase, tokens=tokens)
    else:
        start = random_model(empty.config, device=use.device, dtype=use.computed)
        full = random_model(own_config(dense), device=use.device, dtype=use.computed) if dense else start
        measure = timed_pace(full, start, space.groups, phase=phase, tokens=tokens)
    found: dict[float, Pace] = {}

    def is_fast(ratio: float) -> bool:
        found[ratio] = pace = measure(shape(ratio))
        logger.info("%s: at ratio %.3f %s is %.2f times as fast", asked, ratio, what, pace.speedup)
        return pace.speedup >= float(config.speedup or 0)

    largest = largest_ratio(shape)
    if not is_fast(largest):
        most = math.floor(100 * found[largest].speedup) / 100
        how = f"measured on {use.device}" if use.device else "expected from its multiplications"
        raise PlanError(
            f"{asked}: without all units that can be removed, {what} is {most} times as fast ({how}); choose at most as much"
        )
    _, ratio = bisect(is_fast, largest, step=TIMED_STEP)
    figures = asdict(found[ratio]) | {
        "timed": phase, "tokens": NEW_TOKENS if phase == "decoding" else tokens, "device": str(use.device) if use.device else None,
    }  # fmt: skip
    return Aim(ratio, reached=lambda _: figures)


def check_timed(asked: str, empty: PreTrainedModel, phase: str) -> None:
    """Refuse models that are not timed.

    Raises:
        ConfigError: for models that read no text or do not generate, and several processes.
    """
    if empty.main_input_name != "input_ids":
        raise ConfigError(
            f"{asked}: this model reads {empty.main_input_name}, and only models of token ids are timed; use --ratio"
        )
    if phase == "decoding" and not empty.can_generate():
        raise ConfigError(f"{asked} --timed decoding: this model does not generate text; use --timed prefill")
    if launch.count() > 1:
        raise ConfigError(
            f"{asked}: {launch.count()} processes would disturb each other's times; find the ratio with one, and give it as --ratio"
        )


def _tokens(config: LoRAPruneConfig, described: PreTrainedConfig, default: int) -> int:
    """Return the tokens of a sequence, by default at most as many as the model has positions for."""
    most = positions(described)
    if config.context is None:
        return min(default, most or default)
    if most is not None and config.context > most:
        raise ConfigError(f"--context {config.context}: this model has {most} positions; choose at most as many")
    return config.context


def _shortfall(space: Space, config: LoRAPruneConfig) -> float:
    """Return by how much an allocation of equal widths may miss a ratio: what is removed in addition so that a limit holds."""
    return space.half_step() if ALLOCATIONS[config.chosen_allocation].equal else 0.0


def largest_ratio(shape: Shape) -> float:
    """Return the largest ratio that can be reached."""

    def is_refused(ratio: float) -> bool:
        try:
            shape(ratio)
        except PlanError:
            return True
        return False

    return bisect(is_refused, 1.0, step=STEP)[0]


def bisect(holds: Callable[[float], bool], high: float, *, step: float) -> tuple[float, float]:
    """Return two ratios at most `step` apart, between which something begins to hold that holds at `high`."""
    low = 0.0
    while high - low > step:
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return low, high
