"""The progress bar of a training run: loss, ratio and time left; and the loss curve for the report."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

from transformers import (
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from loraprune.runtime.progress import Advance, phase

LINES = 10
"""lines that a run writes instead of a bar if stderr is not a terminal"""

logger = logging.getLogger(__name__)


class TrainingBar(TrainerCallback):
    """A progress bar on stderr: steps, loss, ratio reached, time left; and the curve for the report."""

    def __init__(self, ratio: Callable[[], float] | None) -> None:
        self.ratio = ratio
        self.curve: list[dict[str, float]] = []
        """step, loss and learning rate at every log"""
        self._open = ExitStack()
        self._advance: Advance | None = None
        self._loss = math.nan

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Show the bar."""
        if sys.stderr.isatty():
            name = "pruning" if self.ratio else "training"
            self._advance = self._open.enter_context(phase(name, state.max_steps))
            self._advance(state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Move the bar."""
        shown = [] if math.isnan(self._loss) else [f"loss {self._loss:.3f}"]
        if self.ratio:
            shown.append(f"ratio {self.ratio():.3f}")
        if self._advance:
            self._advance(1, state="  ".join(shown))
        elif state.global_step % max(1, state.max_steps // LINES) == 0:
            logger.info("step %d of %d  %s", state.global_step, state.max_steps, "  ".join(shown))

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Keep the loss."""
        logs: dict[str, float] = kwargs.get("logs") or {}
        if "loss" not in logs:
            return
        self._loss = float(logs["loss"])
        self.curve.append({"step": state.global_step, "loss": self._loss, "lr": float(logs.get("learning_rate", 0.0))})

    def state_dict(self) -> dict[str, Any]:
        """Return the curve so far."""
        return {"curve": self.curve}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of `state_dict()`."""
        self.curve = list(state["curve"])

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remove the bar."""
        self._open.close()
