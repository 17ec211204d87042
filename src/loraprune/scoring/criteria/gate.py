"""The exact effect of a unit, sample by sample: the Fisher information of a virtual gate m = 1 on what the unit sends on."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from loraprune.scoring.criteria.base import register_gate


@register_gate("gate")
def gate(effects: Float[Tensor, "samples units"]) -> Float[Tensor, " units"]:
    """Return the sum over samples of (dL/dm)^2.

    Source: PAPER.md section 2, "gate gradient"; squared per sample and averaged it is the Fisher score.
    """
    return effects.square().sum(0)
