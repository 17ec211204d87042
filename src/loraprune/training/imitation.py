"""The distillation loss: KL divergence between teacher logits and the pruned model's."""

from __future__ import annotations

from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional

from loraprune.evaluation.tasks import Predictions
from loraprune.training.teachers import Opinion


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
