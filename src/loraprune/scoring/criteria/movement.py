"""Whether training moves a unit away from zero: the baseline that the paper's Table for ViT and BERT compares with."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from loraprune.scoring.criteria.base import register_gate


@register_gate("movement")
def movement(effects: Float[Tensor, "samples units"]) -> Float[Tensor, " units"]:
    """Return -dL/dm = -sum of G W over what the unit owns: positive where a step of descent lengthens its weights.

    Source: Sanh et al., Movement Pruning (arXiv 2005.07683), for a unit instead of a weight.
    """
    return -effects.sum(0)
