"""The exact effect of a unit, sample by sample: the Fisher information of a virtual gate m = 1 on the unit's output."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from loraprune.scoring.criteria.base import register_gate


@register_gate("gate")
def gate(effects: Float[Tensor, "samples units"]) -> Float[Tensor, " units"]:
    """Return the sum over samples of (dL/dm)^2.

    Source: Kwon et al., A Fast Post-Training Pruning Framework for Transformers (arXiv 2204.09656): squared per sample and
    averaged it is the diagonal of the empirical Fisher information.
    """
    return effects.square().sum(0)
