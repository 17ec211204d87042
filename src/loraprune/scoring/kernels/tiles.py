"""Eq 10 reduced to row and column sums in PyTorch, a tile of rows at a time: for every device and dtype.

What does not depend on the rows is made once, and all tiles share two buffers: a fresh one for every tile would cost page
faults on a CPU, and memory traffic everywhere.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from loraprune.models.quantised.forms import Weight, weight_rows
from loraprune.scoring.kernels.factors import Factors

TILE_BYTES = {"cpu": 1 << 20}
"""one of the two buffers: narrower tiles pay for packing the same factors more often, larger ones leave the cache"""
TILE_BYTES_DEVICE = 1 << 26


def eq10_tiles(
    weight: Weight, factors: Factors, *, power: int, rows: bool = True, columns: bool = True
) -> tuple[Float[Tensor, " out"] | None, Float[Tensor, " in_"] | None]:
    """Return the sums of `loraprune.scoring.kernels.eq10_sums`, in the dtype of the factors.

    The estimate is one product of rank 2r, [dB, B] [A - dA; dA].

    Source: Eq 9 and 10 with eta = 1, and Eq 4 up to the sum over a unit's rows or columns.
    """
    a, b, grad_a, grad_b = factors.tensors()
    left, right = torch.cat((grad_b, b), dim=1), torch.cat((a - grad_a, grad_a), dim=0)
    scaled = a * factors.scaling
    out, in_ = weight.shape
    step = min(out, max(1, TILE_BYTES.get(a.device.type, TILE_BYTES_DEVICE) // (in_ * a.itemsize)))
    buffers = a.new_empty(2, step, in_)
    row_sums, column_sums = a.new_empty(out), a.new_zeros(in_)
    for start in range(0, out, step):
        stop = min(start + step, out)
        saliency, merged = buffers[:, : stop - start]
        merged.copy_(weight_rows(weight, start, stop)).addmm_(b[start:stop], scaled)
        torch.mm(left[start:stop], right, out=saliency).mul_(merged)
        saliency = saliency.square_() if power == 2 else saliency.abs_()
        if rows:
            torch.sum(saliency, dim=1, out=row_sums[start:stop])
        if columns:
            column_sums += saliency.sum(0)
    return row_sums if rows else None, column_sums if columns else None
