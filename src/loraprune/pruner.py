"""The mechanism of pruning while training: score, average, decide, remove. Whoever trains calls it; it trains nothing.

Knows nothing about the Trainer, data or files.
"""

from __future__ import annotations

import copy
import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from loraprune.adapters import base_layer, config_of, count_parameters, cuts, find_module, linear_paths, projection
from loraprune.allocation import ALLOCATIONS, Scores, Space, Storable, exact_counts, reach, towards, widths_left
from loraprune.blockwise import check_blocks, fit_blocks_, weight_scales
from loraprune.checkpoint import storable_counts, storable_kinds
from loraprune.compensation import Rows, Trace, check_compensation, compensate_
from loraprune.config import LoRAPruneConfig, parse_count
from loraprune.criteria import criteria
from loraprune.depth import check_layers
from loraprune.errors import ConfigError, NumericsError, PlanError, nearest
from loraprune.families import find_groups
from loraprune.groups import Group, Span, consumers
from loraprune.importance import RunningScores, read_scores
from loraprune.masking import Masks
from loraprune.plan import Budget, Plan
from loraprune.quantised import kind_of, restore_, stored_parameters
from loraprune.scoring import can_score, make_scorer
from loraprune.surgery import check_groups, slice_
from loraprune.verify import check_units, unit_sums

logger = logging.getLogger(__name__)


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
    """Return the groups that may lose units: those of the kinds that --kinds names.

    Raises:
        ConfigError: if the model has none of a kind.
    """
    present = tuple(dict.fromkeys(group.kind for group in groups))
    if options.kinds in ("auto", "all"):
        storable = storable_kinds(config, groups)
        free = options.kinds == "all" or not ALLOCATIONS[options.allocation].equal or not storable
        chosen: set[str] = set(present if free else storable)
        if options.kinds == "auto" and not options.scores:
            criterion = criteria.get(options.criterion)
            chosen -= {group.kind for group in groups if not can_score(criterion, group)}
    else:
        chosen = {kind.strip() for kind in options.kinds.split(",")}
    if odd := sorted(chosen - set(present)):
        raise ConfigError(
            f"--kinds {options.kinds}: this model has no {odd[0]!r}{nearest(odd[0], present)}: it has {', '.join(present)}"
        )
    return tuple(group for group in groups if group.kind in chosen)


def tell_kinds(config: PreTrainedConfig, groups: tuple[Group, ...], options: LoRAPruneConfig) -> None:
    """Say which kinds stay whole without having been asked to, or need modelling code in the folder."""
    left = {group.kind for group in groups} - {group.kind for group in groups_in_play(config, groups, options)}
    coded = {group.kind for group in groups} - left - set(storable_kinds(config, groups))
    unscored = left & {group.kind for group in groups if not can_score(criteria.get(options.criterion), group)}
    if unscored:
        logger.info(
            "units of kind %s stay whole: --criterion %s cannot score them",
            " and ".join(sorted(unscored)),
            options.criterion,
        )
    left -= unscored
    if left and options.kinds == "auto":
        logger.info(
            "units of kind %s stay whole: no stock checkpoint of type %r can hold fewer; --kinds all prunes them too and saves "
            "modelling code in the folder", " and ".join(sorted(left)), config.model_type,
        )  # fmt: skip
    if coded:
        logger.info(
            "no stock checkpoint of type %r can hold fewer units of kind %s: modelling code will lie in the folder",
            config.model_type, " and ".join(sorted(coded)),
        )  # fmt: skip


def check_recovery(groups: tuple[Group, ...], config: LoRAPruneConfig) -> None:
    """Refuse groups in play that cannot recover in the ways that the options ask for.

    Raises:
        ConfigError: for what cannot be refitted, or has no block to learn.
    """
    if config.compensate:
        check_compensation(groups)
    if config.local:
        check_blocks(groups)


def make_space(model: nn.Module, groups: tuple[Group, ...], config: LoRAPruneConfig) -> Space:
    """Return what an allocation may choose from for this model; `groups` are those in play.

    Equal widths are ones that a stock checkpoint can hold, unless a kind in play rules such a checkpoint out anyway.
    """
    stock = {group.kind for group in groups} <= set(storable_kinds(config_of(model), groups))
    equal = ALLOCATIONS[config.allocation].equal and stock
    storable: Storable = storable_counts(config_of(model), groups) if equal else (lambda _: True)
    if config.depth:
        check_layers(config_of(model), find_groups(config_of(model)), groups)
        check_biases(model, groups)
    return Space(groups, measure_budget(model, groups), config.round, storable, layers=config.depth)


def check_biases(model: nn.Module, groups: Sequence[Group]) -> None:
    """Refuse --depth where a layer without units still adds something.

    Raises:
        ConfigError: for a reading projection with a bias.
    """
    for path in (span.module for group in groups for span in consumers(group)):
        if getattr(base_layer(find_module(model, path)), "bias", None) is not None:
            raise ConfigError(
                f"--depth true: {path!r} has a bias, which a layer without units would still add; leave --depth out"
            )


def goal_counts(space: Space, config: LoRAPruneConfig, *, model_parameters: int) -> dict[str, int]:
    """Return the counts that the options ask for: exact dimensions, a number of parameters, or a ratio.

    Raises:
        PlanError: if they cannot be had.
    """
    if config.has_dimensions:
        heads, ffn = widths_left(space, heads=config.heads_ratio, ffn=config.ffn_ratio)
        return exact_counts(space, heads=config.heads or heads, ffn=config.ffn or ffn)
    ratio = target_ratio(space, config, model_parameters=model_parameters)
    # Where scores decide there may be none yet: with equal ones the answer is a possible end, or why there is none.
    scores: Scores = {group.name: [1.0] * group.units for group in space.groups}
    if config.scores:
        units = {group.name: group.units for group in space.groups}
        scores = {name: values.tolist() for name, values in read_scores(config.scores, units).items()}
    return reach(space, ALLOCATIONS[config.allocation], ratio, scores)


def target_ratio(space: Space, config: LoRAPruneConfig, *, model_parameters: int) -> float:
    """Return the ratio of prunable parameters that --ratio or --parameters asks for."""
    if config.parameters is None:
        return config.ratio
    wanted, fixed = parse_count(config.parameters), model_parameters - space.budget.prunable
    if not fixed < wanted <= model_parameters:
        raise PlanError(
            f"--parameters {config.parameters}: this model has {model_parameters:,}, of which {fixed:,} are never pruned; "
            "choose a number between the two"
        )
    return (model_parameters - wanted) / space.budget.prunable


def _plan(groups: Sequence[Group], kept: Mapping[str, Sequence[int]]) -> Plan:
    return Plan({group.name: group.units for group in groups}, {name: tuple(units) for name, units in kept.items()})


class Pruner:
    """Owns the scores, the plan and the removal of units of one adapted model."""

    def __init__(self, model: nn.Module, config: LoRAPruneConfig) -> None:
        self.model, self.config = model, config
        self.dense_config = copy.deepcopy(config_of(model))
        every = find_groups(config_of(model))
        check_groups(model, every)
        self.groups = groups_in_play(config_of(model), every, config)
        """groups that may lose units"""
        tell_kinds(config_of(model), every, config)
        for path in linear_paths(self.groups):
            projection(model, path)
        check_recovery(self.groups, config)
        if config.local:
            self.scales = weight_scales(model, self.groups)
        self.space = make_space(model, self.groups, config)
        parameters = count_parameters(model)
        self.target = target_ratio(self.space, config, model_parameters=parameters)
        self.final = goal_counts(self.space, config, model_parameters=parameters)
        self.plan = Plan.full(self.groups)
        self.is_done = self.counts() == self.final
        """whether the target is reached"""
        self.present = self.groups
        """groups of the model as it is now: fewer units than `groups` once it shrinks"""
        self.scores = RunningScores(self.plan.units, decay=config.decay)
        self.history: dict[str, torch.Tensor] = {}
        """step/group -> (units,) scores before the removal at that step, if they are kept"""
        if config.scores:
            self.scores.load(read_scores(config.scores, self.plan.units))
        criterion = criteria.get(config.criterion)
        self.scorer = make_scorer(
            criterion, model, self.groups, power=config.power, normalize=config.normalize, seed=config.seed
        )
        self.masks = None if config.shrink else Masks(model, self.groups)

    def counts(self) -> dict[str, int]:
        """Return the units that every group keeps now."""
        return {name: len(kept) for name, kept in self.plan.kept.items()}

    def ratio(self) -> float:
        """Return the fraction of the prunable parameters that is removed now."""
        return self.space.budget.ratio(self.counts())

    def score(self) -> None:
        """Average in the scores of this step; gradients must be whole, unscaled and unclipped. Saved scores stay as they are."""
        if self.config.scores:
            self.scorer.forget()
            return
        self.scores.update(self.scorer.collect(self.plan.kept if self.masks else None), self.plan)

    def note(self, step: int) -> None:
        """Keep a copy of the scores as they are at a step, NaN for units that are gone."""
        for name, kept in self.plan.kept.items():
            values = torch.full_like(self.scores.values[name], torch.nan, dtype=torch.float32)
            values[list(kept)] = self.scores.values[name][list(kept)].float()
            self.history[f"{step}/{name}"] = values

    def forget(self) -> None:
        """Drop what was gathered for the scores of this step."""
        self.scorer.forget()

    def remove(
        self, progress: float, *, optimizer: torch.optim.Optimizer | None = None, rows: Rows | None = None
    ) -> None:
        """Remove the lowest units until `progress` (0 to 1) of the way to the target; with `rows`, refit what stays on them.

        Raises:
            NumericsError: if the scores tell nothing: none were gathered, or all units of a group score the same.
        """
        counts = self._counts_at(progress)
        kept = {}
        for name, units in self.plan.kept.items():
            wanted = min(counts[name], len(units))
            if 0 < wanted < len(units):
                self._check_scores(name, units)
            kept[name] = tuple(sorted(self.scores.ranked(name, units)[:wanted]))
        self.apply(Plan(self.plan.units, kept), optimizer=optimizer, rows=rows)
        self.is_done = progress >= 1
        if self.is_done:
            self.scorer.close()

    def _counts_at(self, progress: float) -> dict[str, int]:
        """Return the counts due at `progress`; an end that the scores decide is chosen anew each time."""
        allocation = ALLOCATIONS[self.config.allocation]
        final = self.final
        if allocation.scored and not self.config.has_dimensions:
            final = reach(self.space, allocation, self.target, self._present_scores())
        return towards(self.space, final, progress)

    def _present_scores(self) -> Scores:
        """Return the running scores of the units that are there."""
        return {name: self.scores.values[name][list(kept)].tolist() for name, kept in self.plan.kept.items()}

    def apply(self, plan: Plan, *, optimizer: torch.optim.Optimizer | None = None, rows: Rows | None = None) -> None:
        """Carry out a plan that keeps a part of what is there."""
        positions = plan.kept if self.masks else self.plan.positions(plan)
        trace = Trace(self.model, self.present, rows) if rows and plan != self.plan else None
        due = unit_sums(self.model, self.present, plan=_plan(self.present, positions)) if trace else {}
        if self.masks:
            self.masks.set(plan.kept)
        else:
            self.present = slice_(self.model, self.present, positions, optimizer=optimizer)
            self.scorer.resize(self.present)
            rounded = any(kind_of(each) == "4bit" for each in self._changed_layers().values())
            check_units(due, unit_sums(self.model, self.present) if trace else {}, rounded=rounded)
        if trace and rows:
            self._refit(trace, rows, plan)
        self.plan = plan

    def _refit(self, trace: Trace, rows: Rows, plan: Plan) -> None:
        """Bring what is left near to what the model gave before the cut."""
        if self.config.compensate:
            kept = plan.kept if self.masks else Plan.full(self.present).kept
            compensate_(self.model, self.present, kept, trace, rows)
        if self.config.local:
            changed = [name for name, kept in plan.kept.items() if len(kept) < len(self.plan.kept[name])]
            fit_blocks_(
                self.model,
                self.present,
                changed,
                trace,
                rows,
                self.scales,
                steps=self.config.local,
                seed=self.config.seed,
            )

    def finish(self) -> None:
        """Take hooks and masks off; a masked model is cut now, so that both ways end with the same model."""
        self.scorer.close()
        if self.masks:
            self.masks.remove()
            self.masks = None
            self.present = slice_(self.model, self.present, self.plan.kept)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs, beside the adapters: plan, scores, and the frozen weights that removal changed."""
        weights = {path: dict(stored_parameters(layer)) for path, layer in self._changed_layers().items()}
        return {
            "kept": self.plan.kept, "done": self.is_done, "scores": self.scores.values, "updates": self.scores.updates,
            "scorer": self.scorer.state_dict(), "weights": weights, "history": self.history,
        }  # fmt: skip

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`: cuts or masks a dense model."""
        plan = Plan(self.plan.units, {name: tuple(units) for name, units in state["kept"].items()})
        self.apply(plan)
        for path, layer in self._changed_layers().items():
            restore_(layer, state["weights"][path])
        self.scores.load(state["scores"])
        self.history = dict(state["history"])
        self.scores.updates, self.is_done = int(state["updates"]), bool(state["done"])
        self.scorer.load_state_dict(state["scorer"])
        if self.is_done:
            self.scorer.close()

    def _changed_layers(self) -> dict[str, nn.Module]:
        """Return the layers whose weights cutting alone does not give: rescaled norms, and refitted projections."""
        spans = (span for group in self.groups for span in group.spans if self._is_changed(span))
        return {span.module: base_layer(find_module(self.model, span.module)) for span in spans}

    def _is_changed(self, span: Span) -> bool:
        return span.side == "norm" or span.side in self.config.changed

    def release(self) -> None:
        """Let go of the model, so that its memory can be had back; scores and plan stay."""
        self.model = nn.Module()
        del self.scorer

    def _check_scores(self, name: str, units: tuple[int, ...]) -> None:
        values = self.scores.values[name][torch.tensor(units)]
        if not self.scores.updates or values.min() == values.max():
            raise NumericsError(
                f"all units of {name!r} score {float(values[0])}: nothing tells them apart, so none is removed; "
                "train at least one step first and check that gradients reach the adapters"
            )
