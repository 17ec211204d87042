"""Teachers for distillation: a copy of the dense model, or its most likely tokens on disk.

Knows nothing about pruning or training.
"""

from __future__ import annotations

import copy
import logging
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor
from transformers import PreTrainedModel

from loraprune.data import Rows
from loraprune.evaluation.tasks import Collate
from loraprune.models.quantised import stored_parameters
from loraprune.models.teacher_logits import TeacherLogits, teacher_logits
from loraprune.runtime.atomic import read_sealed, replace_folder, seal
from loraprune.runtime.memory import free_memory_bytes
from loraprune.runtime.processes import in_turn

logger = logging.getLogger(__name__)

LABELS, ROW = "labels", "row"


@runtime_checkable
class Teacher(Protocol):
    """Returns the dense model's logits for a batch."""

    def targets(self, inputs: dict[str, Shaped[Tensor, "rows ..."]]) -> TeacherLogits:
        """Return the dense model's logits for a batch, and take the rows' numbers out of `inputs`."""


class CopyTeacher:
    """A second, frozen copy of the dense model, run on each batch."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model.eval().requires_grad_(False)

    def targets(self, inputs: dict[str, Shaped[Tensor, "rows ..."]]) -> TeacherLogits:
        """Return the copy's logits."""
        inputs.pop(ROW)
        return teacher_logits(self.model, inputs)


class CachedTeacher:
    """The dense model's logits for every training row, on disk: no second model is in memory while training.

    A folder that holds them already, as that of an interrupted run does, is read instead of written.
    """

    def __init__(self, model: PreTrainedModel, rows: Rows, collator: Collate, *, batch: int, folder: Path) -> None:
        about = _whole(folder, rows=len(rows))
        if about is None:
            written = folder.with_name(f".{folder.name}")
            shutil.rmtree(written, ignore_errors=True)
            written.mkdir()
            starts, top = _write(written, model.eval(), rows, collator, batch)
            about = {"starts": starts, "top": top}
            seal(written, about)
            replace_folder(written, folder)
        self._starts, self._top = about["starts"], about["top"]
        shape = (self._starts[-1], self._top)
        self._values = np.memmap(folder / "values", np.float16, "r", shape=shape)
        self._tokens = np.memmap(folder / "tokens", np.int32, "r", shape=shape)

    def targets(self, inputs: dict[str, Shaped[Tensor, "rows ..."]]) -> TeacherLogits:
        """Return the stored logits of the rows that `inputs` numbers."""
        labels, rows = inputs[LABELS], inputs.pop(ROW).tolist()
        # Rows may have been padded to another length then; what is beyond the shorter of the two is padding.
        values = np.zeros((len(rows), labels[0].numel(), self._top), np.float32)
        tokens = np.zeros(values.shape, np.int64)
        for place, row in enumerate(rows):
            start = self._starts[row]
            stop = min(self._starts[row + 1], start + values.shape[1])
            values[place, : stop - start] = self._values[start:stop]
            tokens[place, : stop - start] = self._tokens[start:stop]
        shape = (*labels.shape, self._top)
        found = (torch.from_numpy(each).reshape(shape).to(labels.device) for each in (values, tokens))
        return TeacherLogits(*found)


def _whole(folder: Path, *, rows: int) -> dict[str, Any] | None:
    """Return the manifest of logits for so many rows, or None where they are to be written."""
    if not folder.is_dir():
        return None
    try:
        about = read_sealed(folder)
    except ValueError as error:
        logger.warning("%s is written again: %s", folder, error)
        return None
    return about if len(about["starts"]) == rows + 1 else None


def _write(folder: Path, model: PreTrainedModel, rows: Rows, collator: Collate, batch: int) -> tuple[list[int], int]:
    """Write the logits row after row; return where each row's begin, and how many tokens each place has."""
    starts, top = [0], 0
    with (folder / "values").open("wb") as values, (folder / "tokens").open("wb") as tokens:
        for start in range(0, len(rows), batch):
            places = range(start, min(start + batch, len(rows)))
            inputs = {name: value.to(model.device) for name, value in collator([rows[i] for i in places]).items()}
            found = teacher_logits(model, inputs)
            values.write(found.log_probabilities.half().cpu().numpy().tobytes())
            tokens.write(found.tokens.int().cpu().numpy().tobytes())
            top = found.tokens.shape[-1]
            each = found.tokens[0].numel() // top
            starts += [starts[-1] + each * (place + 1) for place in range(len(places))]
    return starts, top


def choose_teacher(choice: str, model: PreTrainedModel, *, quantisable: Collection[str] = ()) -> str:
    """Resolve `--teacher`: `auto` takes the first of copy, copy with `quantisable` layers in 8 bits, and cache that fits."""
    if choice != "auto":
        return choice
    limit = free_memory_bytes(model.device) / 3
    tensors = [(name, tensor.numel(), tensor.element_size()) for name, tensor in stored_parameters(model)]
    if sum(count * each for _, count, each in tensors) < limit:
        return "copy"
    weights = {f"{path}.weight" for path in quantisable}
    small = sum(count * (1 if name in weights else each) for name, count, each in tensors)
    return "8bit" if quantisable and small < limit else "cache"


def make_teacher(
    choice: str,
    model: PreTrainedModel,
    rows: Rows,
    collator: Collate,
    *,
    batch: int,
    cache: Path,
    small: Callable[[], PreTrainedModel],
) -> Teacher | None:
    """Return the teacher `none`, `copy`, `8bit` or `cache`.

    Logits are stored in the folder `cache`, and are read if they are there already; `small` loads the dense model in 8 bits.
    One process after the other makes its own, as each may need memory for it.
    """
    if choice == "none":
        return None
    with in_turn():
        if choice == "copy":
            return CopyTeacher(copy.deepcopy(model))
        if choice == "8bit":
            return CopyTeacher(small())
        return CachedTeacher(model, rows, collator, batch=batch, folder=cache)
