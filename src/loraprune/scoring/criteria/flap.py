"""Fluctuation of a channel: one that a constant could replace scores zero."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from loraprune.scoring.criteria.base import Channels, register_activation


@register_activation("flap")
def flap(channels: Channels) -> Float[Tensor, " channels"]:
    """Return Var[z] * ||W_c||^2.

    Source: An et al., FLAP (arXiv 2312.11983), the fluctuation metric.
    """
    return (channels.second_moment - channels.mean.square()) * channels.column_norm
