"""Skip steps with a non-finite loss, gradient or score, count and report them; too many end the run.

Knows nothing about pruning.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from loraprune.errors import NumericsError
from loraprune.runtime.processes import agreed, count, most
from loraprune.runtime.sharding import own_shard

IN_A_ROW = 5
"""skipped steps one after the other that end a run: nothing changes between them, so more would follow"""
SHARE = 0.1
"""fraction of a run's steps that may be skipped, if that is more"""
REMEDY = "lower --lr, check the data, or use --dtype float32"
NOTHING, OVERFLOW, LOSS = range(3)
"""what a process finds in a step with a loss scale; of several findings the last one decides"""

logger = logging.getLogger(__name__)


def take_scale_out(optimizer: Any) -> float:
    """Divide all gradients by the loss scale of fp16, so that they can be read; return the scale, 1 where there is none.

    `optimizer` is accelerate's; call it once a step, and not where the Trainer clips, which does the same.
    """
    scaler = getattr(optimizer, "scaler", None)
    if scaler is not None:
        scaler.unscale_(optimizer.optimizer)
    return loss_scale(optimizer)


def loss_scale(optimizer: Any) -> float:
    """Return the loss scale of fp16, 1 where there is none; `optimizer` is accelerate's."""
    scaler = getattr(optimizer, "scaler", None)
    return 1.0 if scaler is None else float(scaler.get_scale())


@runtime_checkable
class Scored(Protocol):
    """What gathers scores from the gradients of a step."""

    def score(self, finite: Bool[Tensor, ""]) -> Bool[Tensor, ""]:
        """Score a step, without a trace if `finite` is false or a score is not; return whether neither is so. Waits for no device."""

    def problem(self) -> str | None:
        """Return which score of the last step is NaN or infinite, in one sentence."""


class StepGuard(TrainerCallback):
    """Skips the optimiser's update of a step with NaN or infinity in it. By itself a callback; pruning asks it instead."""

    def __init__(self) -> None:
        self.skipped: list[dict[str, Any]] = []
        """step and reason of every skipped one"""
        self.verdict: str | None = None
        """why the run must end, once too many steps were skipped"""
        self._in_a_row = 0
        self._losses: list[Tensor] = []

    def see(self, loss: Float[Tensor, ""]) -> None:
        """Check the loss of a micro-batch when the step ends, so that this does not wait for the device."""
        self._losses.append(loss.detach().float())

    def _reason(self, model: nn.Module, scored: Scored | None) -> str | None:
        """Return what is wrong with the losses, gradients and scores of this step, if anything.

        Scoring is queued on the device before anything is read from it: in a step without a fault this waits once, as late as possible.
        """
        gradients = [own_shard(p.grad) for p in model.parameters() if p.grad is not None]
        norms = [nn.utils.get_total_norm(gradients).float()] if gradients else []
        losses, self._losses = self._losses, []
        finite = torch.isfinite(torch.stack([*norms, *losses]).sum()) if norms or losses else torch.tensor(True)
        if finite if scored is None else scored.score(_everywhere(finite)):
            return None
        odd = [float(loss) for loss in losses if not torch.isfinite(loss)]
        if odd:
            return f"the loss is {odd[0]}"
        return scored.problem() if scored and finite else "a gradient is NaN or infinite"

    def overflowed(self, model: nn.Module, scale: float) -> bool:
        """Return whether the only problem is a loss scale that was too large: the scaler skips the step, and lowers the scale.

        All processes return the same: a non-finite loss in one of them is not caused by the scale in any.
        """
        if scale <= 1:  # in all processes, as they have the same gradients
            return False
        is_wrong = not all(bool(torch.isfinite(loss)) for loss in self._losses)
        found = most(LOSS if is_wrong else OVERFLOW if _has_overflowed(model) else NOTHING)
        if found == OVERFLOW:
            self._losses.clear()
        return found == OVERFLOW

    def passes(self, model: nn.Module, state: TrainerState, scale: float, *, scored: Scored | None = None) -> bool:
        """Decide whether the optimiser may use this step's gradients, which are `scored` first, if they are to be.

        A step that may not be used is skipped and counted here, unless its loss scale was too large: the scaler skips that one.
        """
        if self.overflowed(model, scale):
            return False
        if reason := agreed(self._reason(model, scored)):
            self._skip(model, state, reason)
            return False
        self._in_a_row = 0
        return True

    def _skip(self, model: nn.Module, state: TrainerState, reason: str) -> None:
        """Drop the gradients of this step, so that the optimiser leaves everything as it is."""
        for parameter in model.parameters():
            parameter.grad = None
        step = state.global_step + 1
        self._in_a_row += 1
        self.skipped.append({"step": step, "reason": reason})
        logger.warning("step %d was skipped (%d so far): %s", step, len(self.skipped), reason)
        in_a_row = min(IN_A_ROW, state.max_steps)
        if self._in_a_row >= in_a_row or len(self.skipped) > max(IN_A_ROW, SHARE * state.max_steps):
            self.verdict = (
                f"step {step}: {len(self.skipped)} steps were skipped, the last one because {reason}: {REMEDY}"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the counts that a resumed run needs."""
        return {"skipped": self.skipped, "in_a_row": self._in_a_row}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of `state_dict()`."""
        self.skipped, self._in_a_row = list(state["skipped"]), int(state["in_a_row"])

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Skip the step if it is not finite."""
        optimizer = kwargs.get("optimizer")
        # Where the Trainer clips it has taken the scale out.
        scale = loss_scale(optimizer) if args.max_grad_norm else take_scale_out(optimizer)
        self.passes(kwargs["model"], state, scale)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """End the run if too many steps were skipped; checkpoints are written by now.

        Raises:
            NumericsError: with the reason.
        """
        if self.verdict:
            raise NumericsError(self.verdict)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """End the run if too many of its last steps were skipped."""
        self.on_step_begin(args, state, control)


def _everywhere(finite: Bool[Tensor, ""]) -> Bool[Tensor, ""]:
    """Return whether a flag is true in all processes; a single one does not read it."""
    return finite if count() == 1 else torch.tensor(not most(int(not finite)), device=finite.device)


def _has_overflowed(model: nn.Module) -> bool:
    gradients = (own_shard(p.grad) for p in model.parameters() if p.grad is not None)
    return any(not torch.isfinite(gradient).all() for gradient in gradients)
