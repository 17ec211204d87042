"""The exact first-order effect of a unit: the gradient of a virtual gate m = 1 on what the unit sends on."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from loraprune.criteria.base import register_gate


@register_gate("gate")
def gate(
    z: Float[Tensor, "batch seq channels"], grad: Float[Tensor, "batch seq channels"], units: int
) -> Float[Tensor, " units"]:
    """Return the sum over samples of (dL/dm)^2 with dL/dm = sum over tokens and channels of z * dL/dz.

    Source: PAPER.md section 2, "gate gradient"; squared per sample and averaged it is the Fisher score.
    """
    per_channel = (z * grad).float().sum(1)
    return per_channel.unflatten(-1, (units, -1)).sum(-1).square().sum(0)
