"""Weight norm times activation norm: a baseline that needs data but no gradient."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from loraprune.scoring.criteria.base import Channels, register_activation


@register_activation("wanda")
def wanda(channels: Channels) -> Float[Tensor, " channels"]:
    """Return E[z^2] * ||W_c||^2, the expected squared length of what a channel adds to the residual stream.

    Source: Sun et al., Wanda (arXiv 2306.11695), |W_ij| * ||X_j||, squared and summed over a column.
    """
    return channels.second_moment * channels.column_norm
