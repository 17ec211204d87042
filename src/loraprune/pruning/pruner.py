"""Pruning during training: score, average, decide, remove. The training loop calls it; it trains nothing.

Knows nothing about the Trainer, data or files.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from loraprune.config.pruning import LoRAPruneConfig
from loraprune.errors import ConfigError
from loraprune.families import find_groups
from loraprune.groups import Group, Units
from loraprune.models.adapters import config_of, linear_paths, projection
from loraprune.models.quantised import kind_of, restore_, stored_parameters
from loraprune.plan import Plan
from loraprune.pruning.allocation import ALLOCATIONS, reach, towards
from loraprune.pruning.choice import Choice, choose_layers, choose_split
from loraprune.pruning.masking import Masks
from loraprune.pruning.query_units import QueryUnits
from loraprune.pruning.recovery.blockwise import weight_scales
from loraprune.pruning.recovery.compensation import Refit, solve_refits
from loraprune.pruning.recovery.end_to_end import Outputs, default_steps
from loraprune.pruning.recovery.recover import Recovery, Steps, recover_
from loraprune.pruning.recovery.rows import Rows
from loraprune.pruning.recovery.trace import Trace
from loraprune.pruning.removed import Removed, units_removed
from loraprune.pruning.sharded import slice_sharded_
from loraprune.pruning.split import Trial
from loraprune.pruning.surgery import changed_layers, renew_trained_, share_, slice_
from loraprune.pruning.target import Target, decide_recovery, find_target, report_kinds
from loraprune.pruning.verify import check_merging, check_units, unit_sums
from loraprune.runtime.interrupts import at_once
from loraprune.runtime.processes import are_joined, from_first, together
from loraprune.runtime.resharding import Blocks
from loraprune.runtime.sharding import is_sharded
from loraprune.scoring import make_scorer
from loraprune.scoring.average import RunningScores, read_scores
from loraprune.scoring.criteria import criteria

logger = logging.getLogger(__name__)


def _plan(groups: Sequence[Group], kept: Mapping[str, Units]) -> Plan:
    return Plan.full(groups).keeping(kept)


class Pruner:
    """Owns the scores, the plan and the removal of units of one adapted model."""

    def __init__(
        self,
        model: nn.Module,
        config: LoRAPruneConfig,
        target: Target | None = None,
        *,
        folder: Path | None = None,
        blocks: Blocks | None = None,
    ) -> None:
        self.model, self.blocks = model, blocks
        self.dense_config = copy.deepcopy(config_of(model))
        self.target = target or find_target(model, config)
        self.groups, self.space = self.target.groups, self.target.space
        self.recovery_is_wanted = config.compensate is not None or config.local > 0
        """whether --compensate or --local was given, so that it is an error if the model does not support it"""
        self.config = config = decide_recovery(self.groups, config)
        report_kinds(config_of(model), find_groups(config_of(model)), config)
        for path in linear_paths(self.groups):
            projection(model, path)
        if config.local:
            self.scales = weight_scales(model, self.groups)
        self.plan = Plan.full(self.groups)
        self.is_done = self.counts() == self.target.counts
        """whether the target is reached"""
        if self.is_done and self.target.ratio > 0:
            logger.warning(
                "no unit will be removed: the target is nearer to the dense model than to any smaller shape of it; ask for a smaller model"
            )
        self.present = self.groups
        """groups of the model as it is now: fewer units than `groups` once it shrinks"""
        self.scores = RunningScores(self.plan.units, decay=config.decay)
        self.folder = folder
        """folder of the blocks trained after a removal, until the run ends"""
        self.recoveries: list[Recovery] = []
        """what every removal cost, and what recovery gained"""
        self.history: dict[str, torch.Tensor] = {}
        """step/group -> (units,) scores before the removal at that step, if they are kept"""
        self.prunable = self.space.budget.prunable
        """parameters that ratios refer to, whichever units a search of shapes chooses"""
        self.shapes: dict[str, Any] | None = None
        """what the report says about the shapes that were tried"""
        if config.scores:
            self.scores.load(read_scores(config.scores, self.plan.units))
        criterion = criteria.get(config.chosen_criterion)
        self.scorer = make_scorer(
            criterion, model, self.groups, power=config.power, normalize=config.normalize, seed=config.seed
        )
        finer = self.target.by_query_heads
        self.query_units = QueryUnits(model, finer, config) if finer else None
        """query heads as units, until a shape is chosen"""
        self.masks = None if config.shrink else Masks(model, self.groups)
        self._left: dict[str, Tensor] | None = None
        """group -> units that the masks leave, where the model is; None until they are needed"""

    def counts(self) -> dict[str, int]:
        """Return the units that every group keeps now."""
        return {name: len(kept) for name, kept in self.plan.kept.items()}

    def ratio(self) -> float:
        """Return the fraction of the prunable parameters that is removed now."""
        budget = self.space.budget
        return 1 - (self.prunable - (budget.prunable - budget.kept(self.counts()))) / self.prunable

    def score(self, finite: Bool[Tensor, ""] | None = None) -> Bool[Tensor, ""]:
        """Add the scores of this step to the average; gradients must be gathered, unscaled and unclipped. Saved scores stay unchanged.

        Nothing changes if a score is NaN or infinite, or if `finite` is false: whether losses and gradients are finite.

        Returns:
            Whether neither is so, on the device of the scores: this waits for no device.
        """
        if self.config.scores:
            self.scorer.forget()
            return torch.tensor(True) if finite is None else finite
        if self.masks and self._left is None:
            device = next(self.model.parameters()).device
            self._left = {name: torch.as_tensor(kept, device=device) for name, kept in self.plan.indices.items()}
        finite = self.scores.update(self.scorer.collect(self._left), self.plan, finite=finite)
        return self.query_units.score(finite) if self.query_units else finite

    def problem(self) -> str | None:
        """Return which score of the last step is NaN or infinite, in one sentence."""
        return self.scores.problem() or (self.query_units.scores.problem() if self.query_units else None)

    def listen(self, on: bool) -> None:
        """Gather in the next step what scores need, or not: then it must not be scored."""
        self.scorer.listen(on)
        if self.query_units:
            self.query_units.scorer.listen(on)

    def note(self, step: int) -> None:
        """Keep a copy of the scores as they are at a step, NaN for units that are gone, if the options ask for it."""
        for name, kept in self.plan.indices.items() if self.config.history else ():
            left = torch.as_tensor(kept)
            values = torch.full_like(self.scores.values[name], torch.nan, dtype=torch.float32)
            values[left] = self.scores.values[name][left].float()
            self.history[f"{step}/{name}"] = values

    def forget(self) -> None:
        """Discard the scores of this step."""
        self.scorer.forget()
        if self.query_units:
            self.query_units.scorer.forget()

    def remove(
        self,
        progress: float,
        *,
        optimizer: torch.optim.Optimizer | None = None,
        rows: Rows | None = None,
        is_tuned: bool = False,
    ) -> None:
        """Remove the lowest units until `progress` (0 to 1) of the way to the target; with `rows`, recover the remaining weights on them.

        `is_tuned` says whether training follows.
        Processes rank by the first one's scores: rounding may differ between machines, plans may not.

        Raises:
            NumericsError: if the scores are useless: none were gathered, or all units of a group score the same.
        """
        self.scores.load(from_first(self.scores.values))
        outputs = self.measure(rows) if rows and self.plan.is_full and self.config.measures else None
        counts = self._counts_at(progress)
        kept = {name: self._best(name, units, counts[name]) for name, units in self.plan.indices.items()}
        self.apply(self.plan.keeping(kept), optimizer=optimizer, rows=rows, outputs=outputs, is_tuned=is_tuned)
        self.is_done = progress >= 1
        if self.is_done:
            self.scorer.close()

    def _best(self, name: str, units: Int[np.ndarray, " present"], count: int) -> Int[np.ndarray, " best"]:
        if not 0 < count < len(units):
            return units[:count]
        self.scores.check(name, units)
        return self.scores.best(name, units, count, parts=self.plan.parts.get(name, 1))

    def _ranked(self, name: str, units: Units) -> list[int]:
        return self.scores.ranked(name, units, parts=self.plan.parts.get(name, 1))

    def outputs(self, rows: Rows) -> Outputs:
        """Return the model's present outputs for calibration rows: for all of them if the adapters are trained on them."""
        return Outputs(self.model, self.groups, rows, only_aside=self.config.end_to_end == 0)

    def measure(self, rows: Rows) -> Outputs:
        """Decide on calibration rows how many heads, channels and layers go, or which layers; return the model's outputs for them."""
        with at_once():
            outputs = self.outputs(rows)
            try:
                choice = self._choose(outputs, compensate=bool(self.config.compensate))
            except ConfigError:  # layers share projections
                if self.recovery_is_wanted:
                    raise
                choice = self._choose(outputs, compensate=False)
        self.shapes = choice.shapes
        self._choose_units(query_heads=choice.by_query_heads)
        self.target = replace(self.target, counts=choice.counts)
        return outputs

    def _choose(self, outputs: Outputs, *, compensate: bool) -> Choice:
        if not self.config.measures_split:
            return choose_layers(self.model, self.groups, outputs, self.target, self.config)
        steps = default_steps(outputs) if self.config.end_to_end is None else self.config.end_to_end
        ranked = {name: self._ranked(name, units) for name, units in self.plan.kept.items()}
        return choose_split(
            Trial(self.model, self.groups, ranked, outputs, compensate), self.target, self.query_units,
            searches=self.config.searches, steps=steps, seed=self.config.seed,
        )  # fmt: skip

    def _choose_units(self, *, query_heads: bool) -> None:
        """Let the units be query heads from now on, or keep those that they are."""
        finer, self.query_units = self.query_units, None
        if finer is None:
            return
        finer.scorer.close()
        if not query_heads:
            return
        self.target = finer.target
        self.groups = self.present = finer.target.groups
        self.space, self.plan = finer.target.space, Plan.full(finer.target.groups)
        known = {**self.scores.values, **finer.scores.values}
        self.scores = RunningScores(self.plan.units, decay=self.config.decay)
        self.scores.load(known)
        if self.masks:
            self.masks.remove()
            self.masks = Masks(self.model, self.groups)

    def _counts_at(self, progress: float) -> dict[str, int]:
        """Return the counts due at `progress`; final counts that depend on scores are computed again each time."""
        allocation = ALLOCATIONS[self.config.chosen_allocation]
        final = self.target.counts
        if allocation.scored and not self.config.has_dimensions:
            present = {
                name: self.scores.values[name][torch.as_tensor(kept)].tolist()
                for name, kept in self.plan.indices.items()
            }
            final = reach(self.space, allocation, self.target.ratio, present)
        return towards(self.space, final, progress)

    def apply(
        self,
        plan: Plan,
        *,
        optimizer: torch.optim.Optimizer | None = None,
        rows: Rows | None = None,
        outputs: Outputs | None = None,
        is_tuned: bool = False,
    ) -> None:
        """Carry out a plan that keeps a part of the units; `outputs` are the model's present outputs for `rows`, if known."""
        positions = plan.indices if self.masks else self.plan.positions(plan)
        is_due = rows is not None and plan != self.plan
        recovery, steps = (
            self._prepare_recovery(rows, outputs, plan, positions, is_tuned=is_tuned)
            if is_due and rows
            else (Recovery(), None)
        )
        due = unit_sums(self.model, self.present, plan=_plan(self.present, positions)) if is_due else {}
        if self.masks:
            self.masks.set(plan.kept)
            self._left = None
        else:
            self.present = self._slice(positions, optimizer)
            if self.plan.is_full and not is_sharded(self.model):
                check_merging(self.model, self.present)
            if is_due:
                rounded = any(kind_of(each) == "4bit" for each in self._changed_layers().values())
                check_units(due, unit_sums(self.model, self.present), rounded=rounded)
        self.scorer.resize(self.present)  # recovery changes weights in both ways
        if steps and rows:
            with together(), at_once():
                kept = plan.kept if self.masks else Plan.full(self.present).kept
                recover_(self.model, self.present, kept, rows, steps, recovery)
            if are_joined():
                share_(self.model, self._changed_layers().values())
            self.recoveries.append(recovery)
        self.plan = plan

    def _slice(self, positions: Mapping[str, Units], optimizer: torch.optim.Optimizer | None) -> tuple[Group, ...]:
        """Cut the model that trains, and return its groups."""
        if self.blocks and is_sharded(self.model):
            return slice_sharded_(self.model, self.present, positions, blocks=self.blocks, optimizer=optimizer)
        present = slice_(self.model, self.present, positions, optimizer=optimizer)
        if are_joined() and optimizer is not None:
            renew_trained_(self.model, optimizer)
        return present

    def _prepare_recovery(
        self, rows: Rows, outputs: Outputs | None, plan: Plan, positions: Mapping[str, Units], *, is_tuned: bool
    ) -> tuple[Recovery, Steps]:
        """Measure the model before a cut: its loss, the least-squares changes of projections, and the targets of blocks."""
        recovery = Recovery()
        with at_once():
            outputs = outputs or self.outputs(rows)
            recovery.note("before", outputs.distance(self.model))
            left = {name: [int(unit) for unit in units] for name, units in positions.items()}
            refits, trace = self._look_at_rows(left, rows)
        changed = [name for name, kept in plan.kept.items() if len(kept) < len(self.plan.kept[name])]
        if self.config.local_all:
            names = list(plan.kept)
            changed = names[names.index(changed[0]) :]
        scales = self.scales if self.config.local else {}
        steps = Steps(
            refits, trace, outputs, self.config.local, self.config.end_to_end, changed, scales, self.config.seed, is_tuned, self.folder
        )  # fmt: skip
        return recovery, steps

    def _look_at_rows(
        self, positions: Mapping[str, Sequence[int]], rows: Rows
    ) -> tuple[Mapping[str, Refit], Trace | None]:
        """Solve the least-squares problems and trace the targets of blocks; neither if layers share projections, unless requested."""
        try:
            refits = solve_refits(self.model, self.present, positions, rows) if self.config.compensate else {}
            return refits, Trace(self.model, self.present, rows) if self.config.local else None
        except ConfigError as error:
            if self.recovery_is_wanted:
                raise
            logger.info("no least-squares reconstruction and no training of blocks: %s", error)
            self.config = replace(self.config, compensate=False, local=0)
            return {}, None

    def finish(self) -> None:
        """Remove hooks and masks; a masked model is cut now, so that both ways end with the same model.

        A sharded model is cut by the caller that gathers it.
        """
        self.scorer.close()
        self._choose_units(query_heads=False)
        if self.masks:
            self.masks.remove()
            self.masks = None
            if not is_sharded(self.model):
                self.cut(self.model)

    def cut(self, model: nn.Module) -> None:
        """Cut a dense model like the one that was trained."""
        self.model, self.blocks = model, None
        self.present = slice_(model, self.groups, self.plan.kept)

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resumed run needs, besides the adapters: plan, scores, and the frozen weights that removal changed."""
        weights = {path: dict(stored_parameters(layer)) for path, layer in self._changed_layers().items()}
        return {
            "kept": self.plan.kept, "parts": self.plan.parts, "done": self.is_done, "scores": dict(self.scores.values),
            "scorer": self.scorer.state_dict(), "weights": weights, "history": self.history,
            "shapes": self.shapes, "query_units": self.query_units.state_dict() if self.query_units else None,
            "recoveries": [each.to_json() for each in self.recoveries],
            "target": [self.target.ratio, dict(self.target.counts), dict(self.target.reached(self.target.counts))],
        }  # fmt: skip

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of `state_dict()`: cuts or masks a dense model."""
        if self.config.speedup is not None:  # the shape that was timed first: times differ from run to run
            ratio, counts, reached = state["target"]
            self.target = replace(self.target, ratio=ratio, counts=counts, reached=lambda _: reached)
        if self.query_units and state.get("query_units"):  # earlier versions wrote no shapes
            self.query_units.load_state_dict(state["query_units"])
        else:
            self._choose_units(query_heads=state.get("parts", self.plan.parts) != self.plan.parts)
        self.shapes = state.get("shapes")
        self.apply(self.plan.keeping(state["kept"]))
        for path, layer in self._changed_layers().items():
            restore_(layer, state["weights"][path])
        self.scores.load(state["scores"])
        self.history = dict(state["history"])
        self.recoveries = [Recovery.from_json(each) for each in state["recoveries"]]
        self.is_done = bool(state["done"])
        self.scorer.load_state_dict(state["scorer"])
        if self.is_done:
            self.scorer.close()

    def _changed_layers(self) -> dict[str, nn.Module]:
        return changed_layers(self.model, self.groups, self.config.changed)

    def release(self) -> None:
        """Drop the reference to the model, so that its memory can be freed; scores and plan stay."""
        self.model = nn.Module()
        del self.scorer

    def check_saved(self, folder: Path, dense: nn.Module) -> None:
        """Do nothing: the shapes show what was removed."""

    def removed(self) -> Removed:
        """Return the report's entry about the removal."""
        recovery = [each.to_json() for each in self.recoveries]
        reached = self.target.reached(self.counts())
        return units_removed(
            self.config, self.space.budget, self.prunable, self.groups, self.plan, recovery, reached, self.shapes
        )

    def unit_scores(self) -> Mapping[str, Float[Tensor, " units"]]:
        """Return the last score of every unit of the dense model."""
        return self.scores.values

    def noted_scores(self) -> Mapping[str, Float[Tensor, " units"]]:
        """Return step/group -> the scores that `note` kept."""
        return self.history
