"""Recovery by imitation: the pruned model learns from what the dense model would say, as well as from the text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional

from loraprune.data import Rows
from loraprune.evaluation.tasks import Collate, Predictions
from loraprune.runtime.processes import count as processes
from loraprune.training.guard import GuardedTrainer
from loraprune.training.teachers import LABELS, ROW, Opinion, Teacher


class NumberedRows(torch.utils.data.Dataset[dict[str, Any]]):
    """Rows that tell their number, by which a cached teacher finds them."""

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

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return the collator's batch and the numbers of its rows."""
        return {**self.collator(features), ROW: torch.tensor([feature[ROW] for feature in features])}


def imitation_loss(
    logits: Float[Tensor, "*places classes"],
    opinion: Opinion,
    labels: Shaped[Tensor, "*places"],
    predictions: Predictions,
) -> Float[Tensor, ""]:
    """Return KL(dense || pruned) over the named tokens and the bin of all others, summed over the targets.

    Source: Hinton et al., Distilling the Knowledge in a Neural Network (arXiv 1503.02531), at temperature 1.
    """
    theirs = predictions(opinion.log_probabilities, labels)
    ours = functional.log_softmax(predictions(logits, labels).float(), dim=-1)
    ours = ours.gather(-1, predictions(opinion.tokens, labels))
    named = (theirs.exp() * (theirs - ours)).sum(-1)
    rest, our_rest = _others(theirs), _others(ours)
    return (named + rest.exp() * (rest - our_rest)).sum()


def _others(log_probabilities: Float[Tensor, "targets top"]) -> Float[Tensor, " targets"]:
    """Return the logarithm of the probability of all tokens that are not named."""
    left = 1 - log_probabilities.exp().sum(-1)
    return left.clamp_min(1e-6).log()  # rounding may leave nothing, or less


class DistillingTrainer(GuardedTrainer):
    """A Trainer whose loss is (1 - weight) of the text's and `weight` of the dense model's opinion."""

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
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the mixed loss of a micro-batch, normalised as the Trainer normalises the text's."""
        opinion = self._teacher.opinion(inputs)
        labels = inputs[LABELS]
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        count = num_items_in_batch if num_items_in_batch is not None else len(self._predictions(outputs.logits, labels))
        imitation = imitation_loss(outputs.logits, opinion, labels, self._predictions) / count
        if num_items_in_batch is not None:  # counted over all processes, whose gradients are averaged
            imitation = imitation * processes()
        mixed = (1 - self._weight) * loss + self._weight * imitation
        return (mixed, outputs) if return_outputs else mixed
