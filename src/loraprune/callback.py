"""Joining a transformers Trainer (TRL's SFTTrainer too): scores before clipping, removal after the step.

Knows nothing about criteria or plans; it only tells the `Pruner` when.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from loraprune.config import LoRAPruneConfig
from loraprune.distillation import LABELS, ROW
from loraprune.errors import ConfigError, NumericsError
from loraprune.pruner import Pruner
from loraprune.schedule import Schedule
from loraprune.sparsity.sparsifier import Sparsifier

IMAGE_TOKENS = 64
"""what an image counts towards --calibration"""

logger = logging.getLogger(__name__)


class LoRAPruneCallback(TrainerCallback):
    """Prunes the Trainer's model while it trains; the model must carry LoRA (see `attach_lora`).

    Clipping by `max_grad_norm` is taken over: the Trainer would clip before the scores are taken.
    """

    def __init__(self, config: LoRAPruneConfig) -> None:
        self.config = config
        self.pruner: Pruner | Sparsifier | None = None
        self.schedule: Schedule | None = None
        self.history: list[dict[str, float]] = []
        """step and ratio reached after every removal"""
        self._clip = 0.0
        self._rows: CalibrationRows | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Find the groups, check everything that could fail later, and take clipping over."""
        if args.world_size > 1:
            raise ConfigError(f"{args.world_size} processes: shrinking while training needs a single one so far")
        if args.fp16:
            raise ConfigError(
                "fp16=True: scores would be taken from scaled gradients; train with bf16=True or in float32"
            )
        if state.global_step:
            raise ConfigError("resume_from_checkpoint: a pruning run cannot be resumed yet; start it anew")
        config = self.config
        self.pruner = (Sparsifier if config.sparsity else Pruner)(kwargs["model"], config)
        if config.changed:
            self._rows = CalibrationRows(kwargs["train_dataloader"], tokens=config.calibration)
        self.schedule = Schedule(config.schedule, state.max_steps, config.interval, config.warmup, config.cooldown)
        self._clip, args.max_grad_norm = args.max_grad_norm or 0.0, 0.0

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Score with whole, unscaled, unclipped gradients; then clip them as the user asked."""
        assert self.pruner is not None
        model: nn.Module = kwargs["model"]
        check_gradients(model, step=state.global_step + 1)
        if not self.pruner.is_done:
            self.pruner.score()
        if self._clip > 0:
            torch.nn.utils.clip_grad_norm_(model.parameters(), self._clip)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Remove units where the schedule says so."""
        assert self.pruner is not None
        assert self.schedule is not None
        if self.pruner.is_done or not self.schedule.is_event(state.global_step):
            return
        progress = self.schedule.progress(state.global_step)
        self.pruner.remove(progress, optimizer=kwargs["optimizer"], rows=next(self._rows) if self._rows else None)
        self.history.append({"step": state.global_step, "ratio": self.pruner.ratio()})
        logger.debug("step %d: ratio %.4f", state.global_step, self.pruner.ratio())

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take hooks off, cut a masked model, and give clipping back."""
        assert self.pruner is not None
        self.pruner.finish()
        args.max_grad_norm = self._clip
        if not self.pruner.is_done:
            logger.warning(
                "training stopped at step %d, before the target: ratio %.4f is reached",
                state.global_step,
                self.pruner.ratio(),
            )


def check_gradients(model: nn.Module, *, step: int) -> None:
    """Raise a NumericsError if a gradient is NaN or infinite."""
    norms = [p.grad.norm() for p in model.parameters() if p.grad is not None]
    if norms and not torch.isfinite(torch.stack(norms).sum()):
        raise NumericsError(
            f"step {step}: a gradient is NaN or infinite: lower --lr, check the data, or use --dtype float32"
        )


class CalibrationRows(Iterator[Mapping[str, Tensor]]):
    """Inputs of training rows spread over the data, other ones each time; the loader's order is not disturbed.

    Raises:
        ConfigError: if the data cannot be looked at by row.
    """

    def __init__(self, loader: Any, *, tokens: int) -> None:
        self._data, self._collate = loader.dataset, loader.collate_fn
        if not hasattr(self._data, "__getitem__") or not hasattr(self._data, "__len__"):
            raise ConfigError(
                f"compensate or local: {type(self._data).__name__} has no rows to look at by number; train on a map-style data set"
            )
        first = self._collate([self._data[0]])
        longest = max(1, first["input_ids"].shape[1] if "input_ids" in first else IMAGE_TOKENS)
        self._count = min(len(self._data), max(1, tokens // longest))
        self._turn = 0

    def __next__(self) -> Mapping[str, Tensor]:
        """Return the model inputs of the next rows."""
        rows = len(self._data)
        places = [(place * rows // self._count + self._turn) % rows for place in range(self._count)]
        self._turn += 1
        batch: Mapping[str, Tensor] = self._collate([self._data[place] for place in places])
        return {name: values for name, values in batch.items() if name not in (LABELS, ROW)}
