"""Write checkpoints while the Trainer trains, and restore one.

The Trainer's own checkpoints are pickles without scores and cut shapes. Its public interface is used for the rest: it reads
the step and the adapters, and skips the rows that were seen. Knows nothing about pruning: every object with a state is a part.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from loraprune.errors import CheckpointError
from loraprune.models.adapters import ADAPTER, lora_weights
from loraprune.runtime import launch
from loraprune.runtime.interrupts import Interrupted, Pending
from loraprune.runtime.processes import first_alone, gather, most
from loraprune.runtime.sharding import gather_tree, shard_moments, shard_on_load_
from loraprune.training.guard import StepGuard
from loraprune.training.resume.files import finish_checkpoint, new_checkpoint, read_tree, write_tree
from loraprune.training.resume.randomness import random_state, set_random_state

SECONDS = 300
"""seconds between two checkpoints if --save is not given: long enough that their cost is negligible"""
TRAINER_STATE = "trainer_state.json"
"""steps and losses as the Trainer writes them, and reads them when it resumes"""
ADAPTER_WEIGHTS = "adapter_model.safetensors"
"""LoRA's factors as PEFT names them; the Trainer looks for this file"""

logger = logging.getLogger(__name__)


@runtime_checkable
class Part(Protocol):
    """An object whose state changes during a run."""

    def state_dict(self) -> dict[str, Any]:
        """Return a tree of tensors and plain values."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of `state_dict()`."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    folder: Path
    run: Mapping[str, Any]
    """its run: job, options, digests of model and data, teacher"""


class Keeper(TrainerCallback):
    """Writes a checkpoint when one is due, a signal came, or the guard ends the run. The last of a Trainer's callbacks."""

    def __init__(
        self, workspace: Path, run: Mapping[str, Any], *, every: int | None, parts: Sequence[Part], guard: StepGuard
    ) -> None:
        self.workspace, self.run, self.every, self.parts, self.guard = workspace, run, every, parts, guard
        self.pending = Pending()
        """the signal to stop at"""
        self.origin: Path | None = None
        """the checkpoint that was restored"""
        self.done: TrainerState | None = None
        """the step of that checkpoint"""
        self.earlier = 0.0
        """seconds that the training before that checkpoint took"""
        self._began = self._last = time.monotonic()
        self._waiting = False
        self._stopping: int | None = None
        """the signal at which all processes stop after this step"""
        self._restored: dict[str, Any] | None = None
        self._random: dict[str, Any] | None = None

    def restore(self, checkpoint: Checkpoint, model: PeftModel) -> None:
        """Give parts and adapters the state of a checkpoint; its optimiser follows when the Trainer has made one.

        Raises:
            CheckpointError: if it does not fit the model.
        """
        try:
            tree = read_tree(checkpoint.folder)
            for part, state in zip(self.parts, tree["parts"], strict=True):
                part.load_state_dict(state)
            for name, buffer in _buffers(model).items():
                buffer.copy_(tree["buffers"][name])
            model.load_adapter(str(checkpoint.folder), ADAPTER, is_trainable=True)
            optimizer = tree["optimizer"]
            optimizer["state"] = {int(place): state for place, state in optimizer["state"].items()}
            self.earlier = float(tree["seconds"])
            self.done = TrainerState.load_from_json(str(checkpoint.folder / TRAINER_STATE))
            self.origin, self._restored = checkpoint.folder, tree
            self._random = tree["random"][launch.number()]
            shard_on_load_(model)  # the Trainer reads the adapters once more, when they may be in parts
        except (KeyError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(
                f"checkpoint {checkpoint.folder}: its state does not fit this model ({error}); delete it to start again"
            ) from None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Restore the optimiser and the scheduler of a checkpoint."""
        if self._restored:
            optimizer = kwargs["optimizer"]
            optimizer.load_state_dict(shard_moments(self._restored["optimizer"], optimizer))
            kwargs["lr_scheduler"].load_state_dict(self._restored["scheduler"])
            self._restored = None

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Restore the random state of a checkpoint between two epochs: the data loader is about to draw numbers."""
        if self._random and float(state.epoch or 0).is_integer():
            set_random_state(self._random)
            self._random = None

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Restore the random state of a checkpoint within an epoch, whose data loader has drawn its numbers again."""
        if self._random:
            set_random_state(self._random)
            self._random = None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write a checkpoint if one is due, after the loss of this step is logged if it will be."""
        # Signals reach processes at other times, and clocks differ.
        self._stopping = most(self.pending.number or 0) or None
        self._waiting = bool(most(int(self._is_due(state))))
        if not control.should_log:
            self.on_log(args, state, control, **kwargs)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write the checkpoint that waits for this, then act on a signal.

        Raises:
            Interrupted: if one came.
        """
        if not self._waiting:
            return
        self._waiting = False
        written = self.every != 0 and self._write(state, kwargs)
        if self._stopping is not None:
            raise Interrupted(self._stopping, f"a checkpoint of step {state.global_step} is written" if written else "")

    def _is_due(self, state: TrainerState) -> bool:
        if self._stopping is not None or self.guard.verdict:
            return True
        if self.every is not None:
            return self.every > 0 and state.global_step % self.every == 0
        now, is_last = time.monotonic(), state.global_step >= state.max_steps
        return now - (self._began if is_last else self._last) >= SECONDS

    def _write(self, state: TrainerState, objects: Mapping[str, Any]) -> bool:
        """Write a checkpoint in the first process, with the random states of all processes and gathered tensors."""
        tree = gather_tree({
            "parts": [part.state_dict() for part in self.parts],
            "buffers": _buffers(objects["model"]),
            "optimizer": objects["optimizer"].state_dict(),
            "scheduler": objects["lr_scheduler"].state_dict(),
            "random": gather(random_state()),
            "seconds": self.earlier + time.monotonic() - self._began,
        })  # fmt: skip
        adapter = lora_weights(objects["model"])
        written = first_alone(lambda: self._write_alone(state, tree, adapter))
        if written:
            self._last = time.monotonic()
        return written

    def _write_alone(self, state: TrainerState, tree: Mapping[str, Any], adapter: dict[str, Tensor]) -> bool:
        """Write a checkpoint, or warn why there is none: a full disk does not end a run that may yet find room for its result."""
        try:
            folder = new_checkpoint(self.workspace, state.global_step)
            write_tree(folder, tree)
            save_file(adapter, folder / ADAPTER_WEIGHTS)
            state.save_to_json(str(folder / TRAINER_STATE))
            finish_checkpoint(folder, {"step": state.global_step, "run": dict(self.run)})
        except (OSError, SafetensorError) as error:
            logger.warning("step %d: no checkpoint could be written (%s); earlier ones stay", state.global_step, error)
            return False
        return True


def _buffers(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's persistent buffers, such as the running statistics of batch norm."""
    buffers = {name for name, _ in model.named_buffers(remove_duplicate=False)}
    return {name: tensor for name, tensor in model.state_dict().items() if name in buffers}
