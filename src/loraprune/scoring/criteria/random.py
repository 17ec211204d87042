"""Random scores: the control that every other criterion must beat."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from loraprune.scoring.criteria.base import Tile, register_saliency


@register_saliency("random", needs_gradient=False)
def random(tile: Tile) -> Float[Tensor, "rows in_"]:
    """Return numbers in [0, 1) that are drawn again at every step.

    One number is drawn for each row and each column; the low digits of their products, which no longer depend visibly on row and column,
    replace a number for each weight, which would take long to draw for a large model.
    """
    row, column = (1 + torch.rand(size, generator=tile.generator) for size in tile.base.shape)
    return torch.outer(row.to(tile.a), column.to(tile.a)).mul_(1 << 10).frac_()
