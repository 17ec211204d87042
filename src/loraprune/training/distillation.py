"""Distillation: the pruned model is trained on the dense model's logits as well as on the text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from loraprune.data import Rows
from loraprune.evaluation.tasks import Collate, Predictions
from loraprune.runtime.processes import count as processes
from loraprune.training.guarded_trainer import GuardedTrainer
from loraprune.training.imitation import imitation_loss
from loraprune.training.teachers import LABELS, ROW, Teacher


class NumberedRows(torch.utils.data.Dataset[dict[str, Any]]):
    """Rows with their numbers, by which a cached teacher finds them."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.rows[index], ROW: index}


class NumberedCollator:
    """Pads numbered rows."""

    def __init__(self, collator: Collate) -> None:
        self.collator = collator

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Shaped[Tensor, "rows ..."]]:
        """Return the collator's batch and the numbers of its rows."""
        return {**self.collator(features), ROW: torch.tensor([feature[ROW] for feature in features])}


class DistillingTrainer(GuardedTrainer):
    """A Trainer whose loss is (1 - weight) of the text's and `weight` of the dense model's targets."""

    def __init__(
        self, *arguments: Any, teacher: Teacher, weight: float, predictions: Predictions, **options: Any
    ) -> None:
        super().__init__(*arguments, **options)
        self._teacher, self._weight, self._predictions = teacher, weight, predictions

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Shaped[Tensor, "..."] | int | None = None,
    ) -> Any:
        """Return the mixed loss of a micro-batch, normalised as the Trainer normalises the text's."""
        targets = self._teacher.targets(inputs)
        labels = inputs[LABELS]
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        count = num_items_in_batch if num_items_in_batch is not None else len(self._predictions(outputs.logits, labels))
        imitation = imitation_loss(outputs.logits, targets, labels, self._predictions) / count
        if num_items_in_batch is not None:  # counted over all processes, whose gradients are averaged
            imitation = imitation * processes()
        mixed = (1 - self._weight) * loss + self._weight * imitation
        return (mixed, outputs) if return_outputs else mixed
