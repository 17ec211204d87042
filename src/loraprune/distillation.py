"""Recovery by imitation: the pruned model learns from what the dense model would say, as well as from the text.

The dense model speaks in its most likely tokens and one bin for all others. Knows nothing about pruning.
"""

from __future__ import annotations

import copy
import logging
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from loraprune.data import NO_TARGET, Collator, TokenRows
from loraprune.guard import GuardedTrainer
from loraprune.memory import free_memory_bytes
from loraprune.resume.atomic import read_sealed, replace_folder, reserve, seal

TOP = 64
"""tokens that the dense model names at each position"""

logger = logging.getLogger(__name__)


class Opinion(NamedTuple):
    """The dense model's most likely next tokens at every position."""

    log_probabilities: Float[Tensor, "batch seq top"]
    tokens: Int[Tensor, "batch seq top"]


@runtime_checkable
class Teacher(Protocol):
    """Says what the dense model thinks of a batch."""

    def opinion(self, inputs: dict[str, Tensor]) -> Opinion:
        """Return the dense model's opinion, and take the rows' numbers out of `inputs`."""


@torch.no_grad()
def ask(model: nn.Module, inputs: Mapping[str, Tensor]) -> Opinion:
    """Return what a model says now."""
    logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False).logits
    top = min(TOP, logits.shape[-1] - 1)
    values, tokens = logits.topk(top, dim=-1)
    return Opinion(values.float() - logits.float().logsumexp(-1, keepdim=True), tokens)


class CopyTeacher:
    """A second, frozen copy of the dense model, asked for each batch."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model.eval().requires_grad_(False)

    def opinion(self, inputs: dict[str, Tensor]) -> Opinion:
        """Return the copy's opinion."""
        inputs.pop("row")
        return ask(self.model, inputs)


class CachedTeacher:
    """The dense model's opinion on every training row, on disk: no second model is in memory while training.

    A folder that holds them already, as that of an interrupted run does, is read instead of written.
    """

    def __init__(
        self, model: PreTrainedModel, rows: TokenRows, collator: Collator, *, batch: int, folder: Path
    ) -> None:
        longest = max(len(row.input_ids) for row in rows.rows)
        self._shape = (len(rows), longest, min(TOP, model.config.vocab_size - 1))
        if not self._is_whole(folder):
            written = folder.with_name(f".{folder.name}")
            shutil.rmtree(written, ignore_errors=True)
            written.mkdir()
            self._write(written, model.eval(), rows, collator, batch)
            seal(written, {"shape": self._shape})
            replace_folder(written, folder)
        self._values, self._tokens = self._open(folder, "r")

    def _is_whole(self, folder: Path) -> bool:
        if not folder.is_dir():
            return False
        try:
            return read_sealed(folder).get("shape") == list(self._shape)
        except ValueError as error:
            logger.warning("%s is written anew: %s", folder, error)
            return False

    def _open(self, folder: Path, mode: Literal["r", "r+"]) -> tuple[np.memmap[Any, Any], np.memmap[Any, Any]]:
        values = np.memmap(folder / "values", np.float16, mode, shape=self._shape)
        return values, np.memmap(folder / "tokens", np.int32, mode, shape=self._shape)

    def _write(self, folder: Path, model: PreTrainedModel, rows: TokenRows, collator: Collator, batch: int) -> None:
        for name, dtype in (("values", np.float16), ("tokens", np.int32)):
            reserve(folder / name, math.prod(self._shape) * np.dtype(dtype).itemsize)
        values, tokens = self._open(folder, "r+")
        for start in range(0, len(rows), batch):
            places = range(start, min(start + batch, len(rows)))
            inputs = {name: value.to(model.device) for name, value in collator([rows[i] for i in places]).items()}
            found = ask(model, inputs)
            stop, length = start + len(places), found.tokens.shape[1]
            values[start:stop, :length] = found.log_probabilities.half().cpu().numpy()
            tokens[start:stop, :length] = found.tokens.int().cpu().numpy()
        values.flush()
        tokens.flush()

    def opinion(self, inputs: dict[str, Tensor]) -> Opinion:
        """Return what was written down about the rows that `inputs` numbers."""
        places, length = inputs.pop("row").cpu().numpy(), inputs["input_ids"].shape[1]
        device = inputs["input_ids"].device
        values = torch.from_numpy(self._values[places, :length]).to(device, torch.float32)
        return Opinion(values, torch.from_numpy(self._tokens[places, :length]).to(device, torch.long))


def choose_teacher(choice: str, model: PreTrainedModel) -> str:
    """Return what `--teacher` asks for: `auto` copies the model where a third of the free memory holds it."""
    if choice != "auto":
        return choice
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    return "copy" if size < free_memory_bytes(model.device) / 3 else "cache"


def make_teacher(
    choice: str, model: PreTrainedModel, rows: TokenRows, collator: Collator, *, batch: int, cache: Path
) -> Teacher | None:
    """Return the teacher `none`, `copy` or `cache`; opinions lie in the folder `cache`, and are read if they lie there already."""
    if choice == "none":
        return None
    if choice == "copy":
        return CopyTeacher(copy.deepcopy(model))
    return CachedTeacher(model, rows, collator, batch=batch, folder=cache)


class NumberedRows(torch.utils.data.Dataset[dict[str, Any]]):
    """Rows that tell their number, by which a cached teacher finds them."""

    def __init__(self, rows: TokenRows) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.rows[index], "row": index}


class NumberedCollator:
    """Pads numbered rows."""

    def __init__(self, collator: Collator) -> None:
        self.collator = collator

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return the collator's batch and the numbers of its rows."""
        return {**self.collator(features), "row": torch.tensor([feature["row"] for feature in features])}


def imitation_loss(
    logits: Float[Tensor, "batch seq vocab"], opinion: Opinion, labels: Int[Tensor, "batch seq"]
) -> Float[Tensor, ""]:
    """Return KL(dense || pruned) over the named tokens and the bin of all others, summed over the targets.

    Source: Hinton et al., Distilling the Knowledge in a Neural Network (arXiv 1503.02531), at temperature 1.
    """
    targets = labels[:, 1:] != NO_TARGET
    theirs = opinion.log_probabilities[:, :-1][targets]
    ours = functional.log_softmax(logits[:, :-1][targets].float(), dim=-1)
    ours = ours.gather(-1, opinion.tokens[:, :-1][targets])
    named = (theirs.exp() * (theirs - ours)).sum(-1)
    rest, our_rest = _others(theirs), _others(ours)
    return (named + rest.exp() * (rest - our_rest)).sum()


def _others(log_probabilities: Float[Tensor, "targets top"]) -> Float[Tensor, " targets"]:
    """Return the logarithm of the probability of all tokens that are not named."""
    left = 1 - log_probabilities.exp().sum(-1)
    return left.clamp_min(1e-6).log()  # rounding may leave nothing, or less


class DistillingTrainer(GuardedTrainer):
    """A Trainer whose loss is (1 - weight) of the text's and `weight` of the dense model's opinion."""

    def __init__(self, *arguments: Any, teacher: Teacher, weight: float, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._teacher, self._weight = teacher, weight

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the mixed loss of a micro-batch, normalised as the Trainer normalises the text's."""
        opinion = self._teacher.opinion(inputs)
        labels = inputs["labels"]
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        count = num_items_in_batch if num_items_in_batch is not None else (labels[:, 1:] != NO_TARGET).sum()
        imitation = imitation_loss(outputs.logits, opinion, labels) / count
        mixed = (1 - self._weight) * loss + self._weight * imitation
        return (mixed, outputs) if return_outputs else mixed
