"""The vanilla criterion, LLM-Pruner's: weight times its true gradient. What `lora` approximates, at the cost of forming G."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from loraprune.scoring.criteria.base import register_gradient


@register_gradient("gradient")
def gradient(weight: Float[Tensor, "rows in_"], grad: Float[Tensor, "rows in_"]) -> Float[Tensor, "rows in_"]:
    """Return G * W.

    Source: Eq 3; its square is the `power` option.
    """
    return grad * weight
