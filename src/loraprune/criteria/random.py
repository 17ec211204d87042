"""No opinion at all: the control that every other criterion must beat."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from loraprune.criteria.base import Tile, register_saliency


@register_saliency("random", needs_gradient=False)
def random(tile: Tile) -> Float[Tensor, "rows in_"]:
    """Return one random number a row and one a column, so that every unit's score is drawn anew at every step."""
    rows, columns = tile.base.shape
    row = torch.rand(rows, 1, generator=tile.generator) + torch.rand(1, columns, generator=tile.generator)
    return row.to(tile.base)
