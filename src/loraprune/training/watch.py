"""Watch a training: a progress bar, the loss curve, evaluation on held-out data, and early stopping.

Knows nothing about evaluation or pruning: it is given functions for both.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from itertools import chain
from time import perf_counter
from typing import Any

from jaxtyping import Shaped
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from loraprune.evaluation.measurement import Measured
from loraprune.runtime.progress import Advance, phase
from loraprune.runtime.sharding import gather_tensor, shard_like

LOSS = {"nll": "loss"}
"""figures that dashboards show under another name, beside those of the training"""
LINES = 10
"""lines that a run writes instead of a bar if stderr is not a terminal"""

logger = logging.getLogger(__name__)


class TrainingBar(TrainerCallback):
    """A progress bar on stderr: steps, loss, ratio reached, time left; and the curve for the report."""

    def __init__(self, ratio: Callable[[], float] | None, *, trains: bool = True) -> None:
        self.ratio = ratio
        self.trains = trains
        """whether steps train the model, and do not only score it"""
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
            name = "scoring" if not self.trains else "pruning" if self.ratio else "training"
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
            what = "step" if self.trains else "scoring without training, batch"
            logger.info("%s %d of %d  %s", what, state.global_step, state.max_steps, "  ".join(shown))

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


class Watch(TrainerCallback):
    """Evaluates the model every few steps; with `patience` it ends the training early and restores the best adapters.

    A model that still loses units gets worse whatever the training does, so only evaluations after the target count
    towards early stopping, and the saved model has the requested ratio. From there on nothing but the adapters
    (and statistics such as those of batch norm) changes: the best ones are kept on the CPU. Must come after the callback
    that prunes. A part of a checkpoint: a resumed run continues counting.
    """

    def __init__(
        self,
        evaluate: Callable[[nn.Module], Measured],
        *,
        every: int | None,
        patience: int | None,
        ratio: Callable[[], tuple[float, bool]],
    ) -> None:
        """Take functions that evaluate a model, and that return the removed ratio and whether it is the target."""
        self.evaluate, self.every, self.patience, self.ratio = evaluate, every, patience, ratio
        self.history: list[dict[str, float | int | None]] = []
        """step, the metric and further figures, its standard_error and the ratio removed, at every evaluation"""
        self.seconds = 0.0
        """seconds spent on evaluation"""
        self.kept_step: int | None = None
        """the step whose adapters the model has in the end, where `patience` is given"""
        self.ended = False
        """whether the training ended before its last step"""
        self.send: Callable[[dict[str, float]], None] | None = None
        """the Trainer's `log`, which sends figures to dashboards"""
        self._best: dict[str, Tensor] = {}
        self._least = 0.0
        self._worse = 0
        self._sent_ratio = 0.0

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Evaluate if it is due, and at the last step."""
        ratio, is_done = self.ratio()
        figures: dict[str, float] = {} if ratio == self._sent_ratio else {"ratio": ratio}
        is_last = state.global_step >= state.max_steps
        if self.every and (is_last or state.global_step % self.every == 0):
            began = perf_counter()
            measured = self.evaluate(kwargs["model"])
            self.seconds += perf_counter() - began
            found = {measured.metric: measured.value, **measured.others}
            figures |= {f"eval_{LOSS.get(name, name)}": value for name, value in found.items()}
            self.history.append({
                "step": state.global_step, **found, "standard_error": measured.standard_error, "ratio": ratio,
            })  # fmt: skip
            if self.patience and is_done:
                self._compare(measured.loss, kwargs["model"], state, control)
            if is_last or control.should_training_stop:
                self._take_back(kwargs["model"])
        if figures and self.send:
            self._sent_ratio = ratio
            due = control.should_log  # sending a log takes the Trainer's own back
            self.send(figures)
            control.should_log = due

    def _compare(self, loss: float, model: nn.Module, state: TrainerState, control: TrainerControl) -> None:
        assert self.patience is not None
        if self.kept_step is None or loss < self._least:
            self._best = {name: gather_tensor(tensor.detach()).cpu().clone() for name, tensor in changing(model)}
            self._least, self._worse, self.kept_step = loss, 0, state.global_step
            return
        self._worse += 1
        if self._worse >= self.patience and state.global_step < state.max_steps:
            logger.info(
                "step %d: no improvement on the held-out data in %d evaluations; the training ends, and step %s is kept",
                state.global_step, self._worse, self.kept_step,
            )  # fmt: skip
            control.should_training_stop = self.ended = True

    def _take_back(self, model: nn.Module) -> None:
        """Give the model the best adapters; their shapes are the present ones, as nothing is cut after the target."""
        if self._best:
            for name, tensor in changing(model):
                tensor.data.copy_(shard_like(self._best[name], tensor))

    def state_dict(self) -> dict[str, Any]:
        """Return the evaluations so far and the best adapters, for a resumed run."""
        return {
            "history": self.history, "seconds": self.seconds, "kept_step": self.kept_step, "ended": self.ended,
            "best": self._best, "least": self._least, "worse": self._worse, "sent_ratio": self._sent_ratio,
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of `state_dict()`."""
        self.history, self.seconds, self.kept_step = list(state["history"]), float(state["seconds"]), state["kept_step"]
        self.ended, self._best, self._least = bool(state["ended"]), dict(state["best"]), float(state["least"])
        self._worse, self._sent_ratio = int(state["worse"]), float(state["sent_ratio"])


def changing(model: nn.Module) -> Iterator[tuple[str, Shaped[Tensor, "..."]]]:
    """Yield name and tensor of whatever training changes: trained parameters and buffers."""
    trained = ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)
    return chain(trained, model.named_buffers())
