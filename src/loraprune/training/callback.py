"""The callback for a transformers Trainer (TRL's SFTTrainer too): scores before clipping, removal after the step.

Knows nothing about criteria or plans; it only decides when the pruning method runs.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from loraprune.config.in_python import in_python, spoken_in_python
from loraprune.config.pruning import LoRAPruneConfig
from loraprune.errors import ConfigError
from loraprune.families import find_groups
from loraprune.models.adapters import base_model, config_of
from loraprune.models.auto_classes import name_class_
from loraprune.models.foreign_state import give_back_clipping, take_over_clipping
from loraprune.pruning.method import Goal, PruningMethod, make_method
from loraprune.pruning.schedule import Schedule
from loraprune.pruning.sharded import why_masked
from loraprune.pruning.target import Target
from loraprune.runtime import launch
from loraprune.runtime.processes import are_joined, count
from loraprune.runtime.resharding import Blocks
from loraprune.training.calibration import CalibrationRows
from loraprune.training.guard import StepGuard, take_scale_out
from loraprune.training.starts import check_arguments, check_optimizer, check_outputs
from loraprune.training.when import When

LAYERDROP = "layerdrop"
"""attribute of transformers' encoders and decoders: the share of layers that a step skips"""

logger = logging.getLogger(__name__)


class LoRAPruneCallback(TrainerCallback):
    """Prunes the Trainer's model while it trains; the model must carry LoRA (see `attach_lora`).

    It also clips gradients, after scoring: the Trainer would clip before.
    """

    def __init__(
        self,
        config: LoRAPruneConfig,
        *,
        guarded: bool = False,
        goal: Goal | None = None,
        folder: Path | None = None,
        clip: float | None = None,
    ) -> None:
        """Take the settings.

        Args:
            config: Options of LoRA and pruning.
            guarded: Whether a `GuardedTrainer` trains, which wraps a cut model again for several processes.
            goal: The target, if it is already known.
            folder: Folder for blocks that are trained after a removal, for a run that may be stopped.
            clip: Largest norm of the gradients, 0 for any; None takes `max_grad_norm` over from the Trainer while it trains.
        """
        self.config, self.guarded, self.goal, self.folder = config, guarded, goal, folder
        self.guard = StepGuard()
        self.pruner: PruningMethod | None = None
        self.schedule: Schedule | None = None
        self.history: list[dict[str, float]] = []
        """step and ratio reached after every removal"""
        self.clip, self._clip = clip, clip or 0.0
        for sentence in () if guarded else config.idle():  # a run of this package has said so before
            logger.warning(in_python(sentence, vars(config), type(config)))
        self._rows: CalibrationRows | None = None
        self._turn, self._when = 0, When()
        self._restored = False
        self._ended = False
        self._layers: EveryLayer | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Find the groups, check everything that could fail later, and take over gradient clipping."""
        with self._wording():
            self._begin(args, state, **kwargs)

    def _wording(self) -> AbstractContextManager[None]:
        """Return a context in which errors speak of the configuration's arguments; in a run of this package they speak of options."""
        return nullcontext() if self.guarded else spoken_in_python(vars(self.config), type(self.config))

    def _begin(self, args: TrainingArguments, state: TrainerState, **kwargs: Any) -> None:
        check_arguments(args, guarded=self.guarded)
        check_outputs(kwargs["model"])
        if self.config.shrink and not self.config.sparsity:
            check_optimizer(getattr(kwargs.get("optimizer"), "optimizer", None), kwargs["model"])
        if state.global_step and not self._restored:
            raise ConfigError(
                "resume_from_checkpoint: the Trainer's checkpoints lack scores and shapes; `loraprune prune` writes and resumes "
                "its own"
            )
        config = self.config
        if not self._restored and not self._goes_on(kwargs["model"]):
            self.prepare(kwargs["model"])
        assert self.pruner is not None
        if self.pruner.config.recovers:
            self._rows = self._calibration_rows(kwargs["train_dataloader"])
        schedule = Schedule(config.chosen_schedule, state.max_steps, config.interval, *config.fractions)
        rows = self._rows.fixed() if self._rows and config.may_remove_early else None
        self.schedule = self._when.begin(schedule, kwargs["model"], rows, step=state.global_step)
        if self.clip is None:  # where a training broke off, clipping is still taken over
            self._clip = take_over_clipping(args) or self._clip
        self._layers, self._ended = EveryLayer(kwargs["model"]), False
        if self._layers:
            logger.info("layerdrop is switched off while pruning: a layer that was skipped has no score")

    def _goes_on(self, model: nn.Module) -> bool:
        """Return whether a training starts again with the model of the last one: after an error, or to tune it further.

        Raises:
            ConfigError: if the last one ended before the target was reached.
        """
        if self.pruner is None or self.pruner.model is not model:
            return False
        if self._ended and not self.pruner.is_done:
            raise ConfigError(
                "train() again: the last training ended before the target was reached; load the model again, and attach LoRA and a new "
                "callback"
            )
        if self.pruner.is_done:
            logger.info("the target is already reached: this training only tunes the pruned model")
        return True

    def _calibration_rows(self, loader: Any) -> CalibrationRows | None:
        """Return the rows for recovery; None for a stream of rows, which cannot be read by index, unless they are needed."""
        assert self.pruner is not None
        try:
            return CalibrationRows(loader, tokens=self.config.calibration, turn=self._turn)
        except ConfigError as error:
            needed = self.config.searches or (self.config.measures and self.config.layers_option)
            if self.config.compensate or self.config.local or self.config.end_to_end or needed:
                raise
            logger.info("no reconstruction after removals: %s", error)
            self.pruner.config = replace(self.pruner.config, compensate=False, local=0, end_to_end=0)
            return None

    def prepare(self, model: nn.Module) -> None:
        """Prepare the pruning of an adapted, dense model; the start of a training does so by itself, but for one that is to be sharded."""
        config, base = self.config, base_model(model)
        if isinstance(base, PreTrainedModel):
            name_class_(base)
        blocks = Blocks(base) if launch.is_sharded() else None
        if config.shrink and (reason := self._why_masked(base, blocks)):
            logger.info("processes: %d; units are masked during training and cut at its end: %s", count(), reason)
            config = replace(config, shrink=False)
        self.pruner = make_method(model, config, self.goal, folder=self.folder, blocks=blocks)

    def _why_masked(self, base: nn.Module, blocks: Blocks | None) -> str | None:
        """Return why a model cannot be cut while several processes train it; None if it can be."""
        if blocks:
            return why_masked(
                self.goal.groups if isinstance(self.goal, Target) else find_groups(config_of(base)), blocks
            )
        return "your own Trainer does not wrap a cut model again" if are_joined() and not self.guarded else None

    def state_dict(self) -> dict[str, Any]:
        """Return the scores, plan and history that a resumed run needs."""
        assert self.pruner is not None
        return {
            "pruner": self.pruner.state_dict(), "history": self.history, "turn": self._rows.turn if self._rows else 0,
            "guard": self.guard.state_dict(), "when": self._when.state_dict(),
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of `state_dict()`; cuts or masks the model of `prepare`, whose Trainer must be created afterwards."""
        assert self.pruner is not None
        self.pruner.load_state_dict(state["pruner"])
        self.history, self._turn, self._restored = list(state["history"]), int(state["turn"]), True
        self.guard.load_state_dict(state["guard"])
        self._when = When(**state.get("when", {}))

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """End the run if too many steps were skipped; gather what scores need if they will be read."""
        self.guard.on_step_begin(args, state, control)
        assert self.pruner is not None
        self.pruner.listen(self._is_scored(state.global_step + 1))

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Score with gathered, unscaled, unclipped gradients; then clip them as the user asked. Skip a non-finite step."""
        model: nn.Module = kwargs["model"]
        assert self.pruner is not None
        scored = None if self.pruner.is_done or not self._is_scored(state.global_step + 1) else self.pruner
        if not self.guard.passes(model, state, take_scale_out(kwargs["optimizer"]), scored=scored):
            self._forget()
        elif self._clip > 0:
            torch.nn.utils.clip_grad_norm_(model.parameters(), self._clip)

    def _is_scored(self, step: int) -> bool:
        assert self.schedule is not None
        return self.config.score_steps == "all" or self.schedule.is_remembered(step, self.config.decay)

    def _forget(self) -> None:
        assert self.pruner is not None
        if not self.pruner.is_done:
            self.pruner.forget()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Remove units if the schedule calls for it."""
        assert self.pruner is not None
        assert self.schedule is not None
        if self.schedule.look == state.global_step and self._rows:
            self.schedule = self._when.decide(self.schedule, kwargs["model"], self._rows.fixed())
        if self.pruner.is_done or not self.schedule.is_event(state.global_step):
            return
        progress, rows = self.schedule.progress(state.global_step), next(self._rows) if self._rows else None
        self.pruner.note(state.global_step)
        with self._wording():
            follows = state.global_step < state.max_steps
            self.pruner.remove(progress, optimizer=kwargs["optimizer"], rows=rows, is_tuned=follows)
        self.history.append({"step": state.global_step, "ratio": self.pruner.ratio()})
        logger.debug("step %d: ratio %.4f", state.global_step, self.pruner.ratio())

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Add the ratio reached to the Trainer's logs: for later callbacks, and in `state.log_history`."""
        if self.pruner is None or self.guarded:  # a run of this package logs the ratio after every removal
            return
        entries: list[dict[str, Any]] = [kwargs.get("logs") or {}, *state.log_history[-1:]]
        for entry in entries:
            entry["ratio"] = self.pruner.ratio()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remove hooks, cut a masked model, and restore gradient clipping."""
        assert self.pruner is not None
        self.guard.on_train_end(args, state, control)
        self.pruner.finish()
        self._restored = False
        if self.clip is None:
            give_back_clipping(args, self._clip)
            self._clip = 0.0
        if self._layers:
            self._layers.end()
        self._ended = True
        if not self.pruner.is_done:
            logger.warning(
                "training stopped at step %d, before the target: ratio %.4f is reached",
                state.global_step,
                self.pruner.ratio(),
            )


class EveryLayer:
    """Runs all layers of a model that skips some at random while it trains: a layer that was skipped has no score."""

    def __init__(self, model: nn.Module) -> None:
        """Switch skipping off."""
        found = ((module, getattr(module, LAYERDROP, 0)) for module in model.modules())
        self._before = [(module, share) for module, share in found if isinstance(share, float) and share > 0]
        for module, _ in self._before:
            setattr(module, LAYERDROP, 0.0)

    def __bool__(self) -> bool:
        return bool(self._before)

    def end(self) -> None:
        """Give every module its own share back."""
        for module, share in self._before:
            setattr(module, LAYERDROP, share)
