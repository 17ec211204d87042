"""The dense model's most likely tokens at every position, and the divergence of another model's logits from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from loraprune.models.adapters import no_cache

TOP = 64
"""tokens that are stored at each position"""
NOT_SEEN = ("labels", "row")
"""entries of a batch that are not passed to a model"""


class TeacherLogits(NamedTuple):
    """The most likely tokens (or other classes) at every place: (batch, seq), or (batch,) for whole rows."""

    log_probabilities: Float[Tensor, "*places top"]
    tokens: Int[Tensor, "*places top"]


@torch.no_grad()
def teacher_logits(model: nn.Module, inputs: Mapping[str, Shaped[Tensor, "rows ..."]]) -> TeacherLogits:
    """Return the `TOP` most likely tokens of a model for a batch."""
    seen = {name: value for name, value in inputs.items() if name not in NOT_SEEN}
    return top_of(model(**seen, **no_cache(model)).logits)


def top_of(logits: Float[Tensor, "*places classes"]) -> TeacherLogits:
    """Return the `TOP` most likely tokens at every position."""
    top = min(TOP, logits.shape[-1] - 1)
    values, tokens = logits.topk(top, dim=-1)
    return TeacherLogits(values.float() - logits.float().logsumexp(-1, keepdim=True), tokens)


def divergence(logits: Float[Tensor, "places classes"], teacher: TeacherLogits) -> Float[Tensor, " places"]:
    """Return KL(teacher || model) at every place, over the teacher's tokens and one bin for all others.

    Source: Hinton et al., Distilling the Knowledge in a Neural Network (arXiv 1503.02531), at temperature 1.
    """
    theirs = teacher.log_probabilities
    # All logits are read once: a difference of every one would be another tensor of the vocabulary's width.
    ours = logits.gather(-1, teacher.tokens).float() - logits.float().logsumexp(-1, keepdim=True)
    named = (theirs.exp() * (theirs - ours)).sum(-1)
    rest, our_rest = _others(theirs), _others(ours)
    return named + rest.exp() * (rest - our_rest)


def _others(log_probabilities: Float[Tensor, "places top"]) -> Float[Tensor, " places"]:
    """Return the logarithm of the probability of all tokens that are not named."""
    left = 1 - log_probabilities.exp().sum(-1)
    return left.clamp_min(1e-6).log()  # rounding may leave nothing, or less
