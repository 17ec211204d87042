"""Eq 10 reduced to row and column sums in PyTorch, a tile at a time: for every device and dtype.

A tile is some rows of one weight, or several whole weights that are small. What does not depend on the rows is made once, and all tiles
share two buffers: a fresh one for every tile would cost page faults on a CPU, and memory traffic everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from loraprune.models.quantised.forms import Weight, weight_rows
from loraprune.scoring.kernels.factors import Factors

TILE_BYTES = {"cpu": 1 << 20}
"""one of the two buffers: narrower tiles pay for packing the same factors more often, larger ones leave the cache"""
TILE_BYTES_DEVICE = 1 << 26


def eq10_tiles(
    weights: Sequence[Weight], factors: Factors, *, power: int, rows: bool = True, columns: bool = True
) -> tuple[Float[Tensor, "n out"] | None, Float[Tensor, "n in_"] | None]:
    """Return the sums of `loraprune.scoring.kernels.eq10_sums`, in the dtype of the factors.

    The estimate is one product of rank 2r, [dB, B] [A - dA; dA].

    Source: Eq 9 and 10 with eta = 1, and Eq 4 up to the sum over a unit's rows or columns.
    """
    a, b, grad_a, grad_b = factors.tensors()
    left, right = torch.cat((grad_b, b), dim=2), torch.cat((a - grad_a, grad_a), dim=1)
    scaled = a * factors.scaling
    (out, in_), count = weights[0].shape, len(weights)
    room = max(1, TILE_BYTES.get(a.device.type, TILE_BYTES_DEVICE) // (in_ * a.itemsize))
    row_sums, column_sums = a.new_empty(count, out), a.new_zeros(count, in_)
    buffers = a.new_empty(2, min(room, count * out), in_)
    for some, start, stop in _tiles(count, out, room):
        shape = (some.stop - some.start, stop - start, in_)
        saliency, merged = (buffer[: shape[0] * shape[1]].view(shape) for buffer in buffers)
        if shape[0] == 1:  # faster without the dimension of one
            one = some.start
            merged[0].copy_(weight_rows(weights[one], start, stop)).addmm_(b[one, start:stop], scaled[one])
            torch.mm(left[one, start:stop], right[one], out=saliency[0])
        else:
            whole = [each if isinstance(each, Tensor) else each.rows(0, out) for each in weights[some]]
            merged.copy_(torch.stack(whole)).baddbmm_(b[some], scaled[some])
            torch.bmm(left[some], right[some], out=saliency)
        saliency = saliency.mul_(merged)
        saliency = saliency.square_() if power == 2 else saliency.abs_()
        if rows:
            torch.sum(saliency, dim=2, out=row_sums[some, start:stop])
        if columns:
            column_sums[some] += saliency.sum(1)
    return row_sums if rows else None, column_sums if columns else None


def _tiles(count: int, out: int, room: int) -> Iterator[tuple[slice, int, int]]:
    """Yield the weights, and the first and last + 1 row, of every tile; it has at most `room` rows."""
    many = max(1, room // out)
    for first in range(0, count, many):
        some = slice(first, min(first + many, count))
        for start in range(0, out, room):
            yield some, start, min(start + room, out)
