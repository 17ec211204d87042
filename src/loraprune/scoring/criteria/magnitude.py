"""The size of the weights alone: the baseline that needs no data."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from loraprune.scoring.criteria.base import Tile, register_saliency


@register_saliency("magnitude", needs_gradient=False)
def magnitude(tile: Tile) -> Float[Tensor, "rows in_"]:
    """Return W: with power 2 a unit scores its squared L2 norm, with power 1 its L1 norm."""
    weight = tile.merged()
    return weight if tile.factor is None else weight.mul_(tile.factor[:, None])
