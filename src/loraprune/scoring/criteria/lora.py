"""The paper's criterion: the gradient of W is estimated from the gradients of A and B alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from loraprune.models.quantised.forms import Weight
from loraprune.scoring.criteria.base import Tile, register_saliency
from loraprune.scoring.kernels import eq10_fits, eq10_sums, eq10_tiles
from loraprune.scoring.kernels.factors import Factors


def lora_sums(
    weights: Sequence[Weight], factors: Factors, *, power: int, rows: bool, columns: bool
) -> tuple[Float[Tensor, "n out"] | None, Float[Tensor, "n in_"] | None]:
    """Return the sums over rows and columns of whole projections that are alike, from one pass of a kernel where it fits."""
    reduce = eq10_sums if eq10_fits(weights[0], factors) else eq10_tiles
    return reduce(weights, factors, power=power, rows=rows, columns=columns)


@register_saliency("lora", fused=lora_sums)
def lora(tile: Tile) -> Float[Tensor, "rows in_"]:
    """Return (dB A + B dA - dB dA) * W, the estimate as one product of rank 2r: [dB, B] [A - dA; dA].

    Source: Eq 9 and 10 with eta = 1; the square of Eq 10 is the `power` option.
    """
    left = torch.cat((tile.grad_b, tile.b), dim=1)
    right = torch.cat((tile.a - tile.grad_a, tile.grad_a), dim=0)
    return (left @ right).mul_(tile.merged())
