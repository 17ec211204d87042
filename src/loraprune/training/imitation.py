"""The distillation loss: KL divergence between teacher logits and the pruned model's."""

from __future__ import annotations

from jaxtyping import Float, Shaped
from torch import Tensor

from loraprune.evaluation.tasks import Predictions
from loraprune.models.teacher_logits import TeacherLogits, divergence


def imitation_loss(
    logits: Float[Tensor, "*places classes"],
    targets: TeacherLogits,
    labels: Shaped[Tensor, "*places"],
    predictions: Predictions,
) -> Float[Tensor, ""]:
    """Return KL(dense || pruned) summed over the targets that a task's `predictions` selects."""
    theirs = TeacherLogits(predictions(targets.log_probabilities, labels), predictions(targets.tokens, labels))
    return divergence(predictions(logits, labels), theirs).sum()
