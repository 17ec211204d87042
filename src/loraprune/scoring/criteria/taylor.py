"""The exact first-order effect of a unit on the loss of a whole step."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from loraprune.scoring.criteria.base import register_gate


@register_gate("taylor", finish=torch.abs)
def taylor(effects: Float[Tensor, "samples units"]) -> Float[Tensor, " units"]:
    """Return dL/dm; its absolute value over the step is what the loss changes by, to first order, without the unit.

    Source: Michel et al., Are Sixteen Heads Really Better than One? (arXiv 1905.10650), for heads.
    """
    return effects.sum(0)
