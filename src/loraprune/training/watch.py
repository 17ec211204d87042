"""Evaluate a model on held-out data during training: a curve, logs for dashboards, and early stopping.

Knows nothing about evaluation or pruning: it is given functions for both.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from itertools import chain
from time import perf_counter
from typing import Any

from jaxtyping import Shaped
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from loraprune.evaluation.measurement import Measured
from loraprune.runtime.sharding import parted_like, whole_tensor

LOSS = {"nll": "loss"}
"""figures that dashboards show under another name, beside those of the training"""
TENSORBOARD_FOLDER = "TENSORBOARD_LOGGING_DIR"
"""variable with the folder for transformers' TensorBoard callback"""

logger = logging.getLogger(__name__)


class Watch(TrainerCallback):
    """Evaluates the model every few steps; with `patience` it ends the training early and restores the best adapters.

    A model that still loses units gets worse whatever the training does, so only evaluations after the target count
    towards early stopping, and the saved model has the requested ratio. From there on nothing but the adapters
    (and statistics such as those of batch norm) changes: the best ones are kept on the CPU. Must come after the callback
    that prunes. A part of a checkpoint: a resumed run continues counting.
    """

    def __init__(
        self,
        judge: Callable[[nn.Module], Measured],
        *,
        every: int | None,
        patience: int | None,
        ratio: Callable[[], tuple[float, bool]],
    ) -> None:
        """Take functions that evaluate a model, and that return the removed ratio and whether it is the target."""
        self.judge, self.every, self.patience, self.ratio = judge, every, patience, ratio
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
            measured = self.judge(kwargs["model"])
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
            self._best = {name: whole_tensor(tensor.detach()).cpu().clone() for name, tensor in changing(model)}
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
                tensor.data.copy_(parted_like(self._best[name], tensor))

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


@contextmanager
def dashboards(folder: str) -> Iterator[None]:
    """Make TensorBoard write to `folder`, unless the environment names another one, and keep dashboards' output off stdout."""
    known = os.environ.get(TENSORBOARD_FOLDER)
    os.environ[TENSORBOARD_FOLDER] = known or folder
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        if not known:
            del os.environ[TENSORBOARD_FOLDER]
