"""What an expert adds to the tokens that are routed to it: a criterion for whole experts that needs data but no gradient."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from loraprune.scoring.criteria.base import register_routing


@register_routing("reap")
def reap(gates: Float[Tensor, " routed"], norms: Float[Tensor, " routed"]) -> Float[Tensor, " routed"]:
    """Return g * ||f(x)||_2 for every token that is routed to an expert; an expert scores the mean over its tokens.

    Source: Lasby et al., REAP the Experts (arXiv 2510.13999), the router-weighted expert activation.
    """
    return gates * norms
