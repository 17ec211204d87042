"""The target of a run: the groups that may lose units, the parameters of their units, and the counts of the options.

Knows nothing about scores over time, removal or training.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from loraprune.config.pruning import LoRAPruneConfig
from loraprune.errors import ConfigError, PlanError, nearest
from loraprune.families import find_groups
from loraprune.families.depth import check_layers
from loraprune.families.query_heads import as_asked
from loraprune.groups import EXPERTS, Group, consumers
from loraprune.models.adapters import base_layer, config_of, cuts, find_module
from loraprune.models.saving import storable_counts, storable_kinds
from loraprune.plan import Budget
from loraprune.pruning.allocation import (
    ALLOCATIONS,
    Counts,
    Scores,
    Space,
    Storable,
    exact_counts,
    keep_layers,
    reach,
    widths_left,
)
from loraprune.pruning.currencies import find_aim
from loraprune.pruning.deployment import Deployment
from loraprune.pruning.recovery.blockwise import check_blocks
from loraprune.pruning.recovery.compensation import check_compensation
from loraprune.runtime import launch
from loraprune.scoring import can_score, check_scorable
from loraprune.scoring.average import read_scores
from loraprune.scoring.criteria import criteria

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Target:
    """Which units a run may remove, and how many of them stay."""

    groups: tuple[Group, ...]
    """groups that may lose units"""
    space: Space
    ratio: float
    """fraction of the prunable parameters to remove"""
    counts: Counts
    """units that every group keeps in the end, where scores do not decide that"""
    reached: Callable[[Counts], Mapping[str, Any]] = lambda _: {}
    """counts -> figures of a target that is not in parameters, for the report"""
    by_query_heads: Target | None = None
    """the same target with query heads as units instead of key-value heads, where a search of shapes tries both"""


def find_target(
    model: nn.Module, config: LoRAPruneConfig, *, dense: PreTrainedModel | None = None, deployment: Deployment | None = None
) -> Target:  # fmt: skip
    """Return the target of the options for a model, with weights or without; `dense` and `deployment` are as of `find_aim`.

    Raises:
        ConfigError: if the model has no such units, or cannot recover or be measured in the ways that the options ask for.
        PlanError: if the target cannot be reached.
    """
    groups = groups_in_play(config_of(model), find_groups(config_of(model)), config)
    check_recovery(groups, config)
    space = make_space(model, groups, config)
    aim = find_aim(
        model, space, config, lambda ratio: goal_counts(space, config, ratio), dense=dense, deployment=deployment
    )
    within = space if aim.fits is None else narrowed(space, aim.fits)
    target = Target(groups, within, aim.ratio, goal_counts(within, config, aim.ratio), aim.reached)
    if not config.searches:
        return target
    return replace(target, by_query_heads=_by_query_heads(model, config, target, dense=dense, deployment=deployment))


def _by_query_heads(
    model: nn.Module, config: LoRAPruneConfig, target: Target, *, dense: PreTrainedModel | None, deployment: Deployment | None
) -> Target | None:  # fmt: skip
    """Return the target with query heads as units, for as many parameters.

    None where they are the units already, key-value heads are not shared, --kinds names units, or the target cannot be had.
    """
    known, every = config_of(model), find_groups(config_of(model))
    kinds = dict.fromkeys(("query", *(group.kind for group in target.groups if group.kind != "attention")))
    asked = ",".join(kinds)
    finer = [group for group in as_asked(every, asked, depth=False) if group.kind in kinds]
    present = {group.kind for group in target.groups}
    if config.kinds != "auto" or "query" in present or not any(group.kind == "query" for group in finer):
        return None
    if config.scores or "query" not in storable_kinds(known, finer):
        why = f"--scores {config.scores} has key-value heads" if config.scores else "no stock checkpoint holds fewer"
        logger.info("shapes with fewer query heads are not tried: %s", why)
        return None
    ratio = config.ratio * target.space.budget.prunable / measure_budget(model, tuple(finer)).prunable
    options: dict[str, Any] = {"kinds": asked, "depth": False, **({"ratio": ratio} if config.has_ratio else {})}
    try:
        return find_target(model, replace(config, **options), dense=dense, deployment=deployment)
    except (ConfigError, PlanError) as error:
        logger.info("shapes with fewer query heads are not tried: %s", error)
        return None


def narrowed(space: Space, fits: Callable[[Counts], bool]) -> Space:
    """Return a space of which only the counts that fit can be chosen, by allocations of equal widths."""
    return replace(space, storable=lambda counts: space.storable(counts) and fits(counts))


def measure_budget(model: nn.Module, groups: tuple[Group, ...]) -> Budget:
    """Count the parameters that one unit of every group owns, adapters left out."""
    each: Counter[str] = Counter()
    owners: dict[tuple[str, str], list[tuple[str, int, int]]] = {}
    """tensor -> group, dimension, parameters that the group's units own"""
    sizes: dict[tuple[str, str], int] = {}
    for group in groups:
        for span in group.spans:
            layer = base_layer(find_module(model, span.module))
            for cut in (cut for cut in cuts(layer, span.side) if isinstance(cut.tensor, nn.Parameter)):
                sizes[span.module, cut.name] = math.prod(cut.shape)
                one = math.prod(cut.shape) // cut.size * span.width
                each[group.name] += one
                owners.setdefault((span.module, cut.name), []).append((group.name, cut.dim, one * group.units))
    shared: Counter[tuple[str, str]] = Counter()
    for (path, name), parts in owners.items():
        size = sizes[path, name]
        for (one_group, one_dim, rows), (other_group, other_dim, columns) in combinations(parts, 2):
            if one_dim != other_dim:
                shared[one_group, other_group] += rows * columns // size
    return Budget(dict(each), {group.name: group.units for group in groups}, dict(shared))


def groups_in_play(config: PreTrainedConfig, groups: tuple[Group, ...], options: LoRAPruneConfig) -> tuple[Group, ...]:
    """Return the groups that may lose units: those of the kinds that --kinds names, with query heads as units where it asks for them.

    Raises:
        ConfigError: if the model has none of a kind.
    """
    groups = as_asked(groups, options.kinds, depth=bool(options.layers_option))
    present = tuple(dict.fromkeys(group.kind for group in groups))
    if options.kinds in ("auto", "all"):
        storable = storable_kinds(config, groups)
        free = options.kinds == "all" or not ALLOCATIONS[options.chosen_allocation].equal or not storable
        chosen: set[str] = set(present if free else storable)
        if options.kinds == "auto" and not options.scores:
            criterion = criteria.get(options.chosen_criterion)
            able = {group.kind for group in groups if can_score(criterion, group)}
            if not able:
                check_scorable(criterion, groups)
            chosen &= able
    else:
        chosen = {kind.strip() for kind in options.kinds.split(",")}
    if odd := sorted(chosen - set(present)):
        raise ConfigError(
            f"--kinds {options.kinds}: this model has no {odd[0]!r}{nearest(odd[0], present)}: it has {', '.join(present)}"
        )
    return tuple(group for group in groups if group.kind in chosen)


def report_kinds(config: PreTrainedConfig, groups: tuple[Group, ...], options: LoRAPruneConfig) -> None:
    """Log which kinds are not pruned although this was not requested, or need modelling code in the folder."""
    groups = as_asked(groups, options.kinds, depth=bool(options.layers_option))
    left = {group.kind for group in groups} - {group.kind for group in groups_in_play(config, groups, options)}
    coded = {group.kind for group in groups} - left - set(storable_kinds(config, groups))
    unscored = left & {group.kind for group in groups if not can_score(criteria.get(options.chosen_criterion), group)}
    if unscored:
        logger.info(
            "units of kind %s are not pruned: --criterion %s cannot score them",
            " and ".join(sorted(unscored)),
            options.chosen_criterion,
        )
    left -= unscored
    if left and options.kinds == "auto":
        logger.info(
            "units of kind %s are not pruned: no stock checkpoint of type %r can hold fewer; --kinds all prunes them too and saves "
            "modelling code in the folder", " and ".join(sorted(left)), config.model_type,
        )  # fmt: skip
    if options.has_dimensions:
        for what, widths in (
            ("heads", (options.heads, options.heads_ratio)),
            ("FFN channels", (options.ffn, options.ffn_ratio)),
        ):
            if widths == (None, None):
                logger.info("all %s are kept: no target was given for them", what)
    if coded:
        logger.info(
            "no stock checkpoint of type %r can hold fewer units of kind %s: the folder will contain modelling code",
            config.model_type, " and ".join(sorted(coded)),
        )  # fmt: skip


def decide_recovery(groups: Sequence[Group], config: LoRAPruneConfig) -> LoRAPruneConfig:
    """Return the options with recovery options that were not given set to what is possible.

    `end_to_end` stays None where it is: the calibration rows decide how many steps some passes over them take.
    """
    possible = not (config.sparsity or launch.is_sharded())
    channels = any(group.kind == "channel" for group in groups)
    return replace(
        config,
        compensate=possible and not channels if config.compensate is None else config.compensate,
        end_to_end=config.end_to_end if possible or config.end_to_end else 0,
        allocation="uniform" if launch.is_sharded() and config.allocation == "auto" else config.allocation,
    )


def check_recovery(groups: tuple[Group, ...], config: LoRAPruneConfig) -> None:
    """Refuse groups in play that cannot recover in the ways that the options ask for.

    Raises:
        ConfigError: for projections without a reconstruction, units without a block, and sharded models.
    """
    if launch.is_sharded():
        check_parts(groups, config)
    if config.compensate:
        check_compensation(groups)
    if config.local:
        check_blocks(groups)


def check_parts(groups: tuple[Group, ...], config: LoRAPruneConfig) -> None:
    """Refuse options that need unsharded weights during training, with FSDP.

    Raises:
        ConfigError: for recovery of frozen weights, and for stacks of experts.
    """
    remedy = "launch without --use_fsdp"
    if config.compensate or config.local or config.end_to_end:
        raise ConfigError(
            f"--compensate, --local, --end-to-end: FSDP shards weights, which then cannot be reconstructed; {remedy}"
        )
    if option := config.layers_option:
        raise ConfigError(f"{option}: FSDP shards weights, so that the model cannot be tried without a layer; {remedy}")
    if config.searches:
        raise ConfigError(f"--allocation searched: FSDP shards weights, so that no shape can be tried; {remedy}")
    if any(group.kind in EXPERTS for group in groups):
        raise ConfigError(
            f"--kinds {config.kinds}: FSDP shards stacks of experts, which then cannot be masked; {remedy}"
        )


def make_space(model: nn.Module, groups: tuple[Group, ...], config: LoRAPruneConfig) -> Space:
    """Return what an allocation may choose from for this model; `groups` are those in play.

    Equal widths are ones that a stock checkpoint can hold, unless a kind in play rules such a checkpoint out anyway.
    """
    stock = {group.kind for group in groups} <= set(storable_kinds(config_of(model), groups))
    equal = ALLOCATIONS[config.chosen_allocation].equal and stock
    storable: Storable = storable_counts(config_of(model), groups) if equal else (lambda _: True)
    if option := config.layers_option:
        check_layers(config_of(model), find_groups(config_of(model)), groups, option)
        check_biases(model, groups, option)
    return Space(groups, measure_budget(model, groups), config.round, storable, layers=config.depth)


def check_biases(model: nn.Module, groups: Sequence[Group], option: str) -> None:
    """Refuse an option that removes layers where a layer without units still adds something.

    Raises:
        ConfigError: for a reading projection with a bias.
    """
    for path in (span.module for group in groups for span in consumers(group)):
        if getattr(base_layer(find_module(model, path)), "bias", None) is not None:
            raise ConfigError(
                f"{option}: {path!r} has a bias, which a layer without units would still add; leave it out"
            )


def goal_counts(
    space: Space, config: LoRAPruneConfig, ratio: float, order: Sequence[str] | None = None
) -> dict[str, int]:
    """Return the counts that the options ask for: exact dimensions, or a ratio of the prunable parameters.

    With --layers the first layers of `order` go, or, before it is known, the last ones of the model.

    Raises:
        PlanError: if they cannot be had.
    """
    if config.has_dimensions:
        heads, ffn = widths_left(space, heads=config.heads_ratio, ffn=config.ffn_ratio)
        counts = exact_counts(space, heads=config.heads or heads, ffn=config.ffn or ffn)
        return counts if config.layers is None else keep_layers(space, counts, config.layers, order)
    # Where scores decide there may be none yet: with equal ones the answer is a possible end, or why there is none.
    scores: Scores = {group.name: [1.0] * group.units for group in space.groups}
    if config.scores:
        units = {group.name: group.units for group in space.groups}
        scores = {name: values.tolist() for name, values in read_scores(config.scores, units).items()}
    return reach(space, ALLOCATIONS[config.chosen_allocation], ratio, scores)
