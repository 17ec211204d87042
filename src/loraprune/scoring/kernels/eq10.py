"""Eq 10 reduced to row and column sums in one read of the weights (Triton).

One launch is for all weights of a shape and format, whose addresses are in a table. A program owns BN columns of one and walks down
tiles tiles of BM rows. A tile's two products, the gradient estimate
[B dB] [dA; A - dA] and s B A, are formed in registers from slices of the factors; their product's power is reduced at once.
Nothing of size out x in is written.

Deterministic: a program writes its sums to a separate place, which are then added in a fixed order; no atomics, and block sizes
that depend on shapes and formats alone, not on a search by the clock.

What the arithmetic needs. An H100 reads 3 TB/s, in bfloat16 6.5 weights a cycle of one of its 132 multiprocessors, which issues
128 instructions a cycle: 20 a weight. At rank 8 the products take 24 multiply-adds a weight: on the vector units alone they would
be the bottleneck, so they go to the tensor units, where single products are too coarse: TF32 and BF16 round an entry of B or
of its gradient by up to 2^-11 and 2^-9, once for a whole row, and a row's score would be wrong by as much. Therefore each
factor is split into two BF16 numbers (2^-17 is left) and three products of the pieces are added, six a tile in all: 21 weights a
cycle, three times what memory delivers. Up to rank 8 the estimate's two factors side by side fill the depth of 16 that a tensor unit
multiplies anyway. BF16 has float32's exponents, so gradients of 1e-20 need no scaling. Weights of 32 bits take
twice as long to read and get three TF32 products a product, which is exact to about 2^-21.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int64
from torch import Tensor

from loraprune.models.quantised.forms import Int8Rows, Nf4Blocks, Weight, nf4_levels
from loraprune.scoring.kernels.factors import Factors

ALIGNMENT = 16
"""bytes that one load reads at most: weights that start at multiples of them are read with fewer loads"""
EXACT_RANK = 32
"""three TF32 products need twice the room of the BF16 pieces; 32-bit weights of a higher rank make do with these"""


@dataclass(frozen=True, slots=True)
class Blocks:
    """Sizes of tiles and programs."""

    bm: int
    bn: int
    warps: int
    stages: int
    programs: int
    """about how many share the work: one wave on an H100"""


def blocks(form: str, k: int, *, exact: bool, columns: bool) -> Blocks:
    """Return the sizes for a format and a padded depth, twice the rank.

    They keep a program within 99 KiB of shared memory (what the smallest of the devices has) and, up to rank 16, within its registers;
    a multiprocessor then holds the programs that are counted here, as the compiler's figures for an H100 say.
    """
    if k * (2 if exact else 1) > 32:
        return Blocks(bm=64, bn=32, warps=4, stages=1, programs=132 * 2)
    if exact:
        return Blocks(bm=64, bn=64, warps=4, stages=3, programs=132 * 3)
    if form == "nf4":  # stages would copy every look-up of a level to shared memory on its own
        return Blocks(bm=64, bn=64, warps=4, stages=1, programs=132 * (3 if columns else 4))
    return Blocks(bm=64, bn=128, warps=4, stages=3, programs=132 * (2 if columns else 3))


def launch(
    weights: Sequence[Weight], factors: Factors, *, power: int, rows: bool, columns: bool, sizes: Blocks | None = None
) -> tuple[Float[Tensor, "n out"] | None, Float[Tensor, "n in_"] | None]:
    """Return the sums of `loraprune.scoring.kernels.eq10_sums`."""
    out, in_ = weights[0].shape
    device, rank, count = factors.a.device, factors.a.shape[1], len(weights)
    found = [_stored(weight) for weight in weights]
    form, stored, scales, strides = found[0]
    exact = stored.dtype == torch.float32 and rank <= EXACT_RANK
    k = max(16, 1 << (2 * rank - 1).bit_length())  # tensor units multiply no fewer
    sizes = sizes or blocks(form, k, exact=exact, columns=columns)
    across, down = -(-in_ // sizes.bn), -(-out // sizes.bm)  # outside of a kernel triton.cdiv takes microseconds
    tiles = -(-down // max(1, sizes.programs // (across * count)))
    chunks = -(-down // tiles)
    row_parts = torch.empty((count, across, out) if rows else (0,), dtype=torch.float32, device=device)
    column_parts = torch.empty((count, chunks, in_) if columns else (0,), dtype=torch.float32, device=device)
    places = (*(each[1].data_ptr() for each in found), *(each[2].data_ptr() for each in found))
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        _eq10[(across, chunks, count)](
            stored, scales, _table(places, device), nf4_levels(device), *(tensor.contiguous() for tensor in factors.tensors()),
            row_parts, column_parts, out, in_, *strides, float(factors.scaling), tiles, FORM=form, POWER=power, ROWS=rows,
            COLUMNS=columns, EXACT=exact, PIECE=tl.bfloat16 if device.type == "cuda" else tl.float32,
            ALIGNED=not any(place % ALIGNMENT for place in places), RANK=rank, K=k, BM=sizes.bm, BN=sizes.bn,
            STAGES=sizes.stages, num_warps=sizes.warps,
        )  # fmt: skip
    return _added(row_parts) if rows else None, _added(column_parts) if columns else None


def _added(parts: Float[Tensor, "n parts entries"]) -> Float[Tensor, "n entries"]:
    """Return the sums of parts; a single one is complete."""
    return parts[:, 0] if parts.shape[1] == 1 else parts.sum(1)


@functools.lru_cache(maxsize=256)
def _table(places: tuple[int, ...], device: torch.device) -> Int64[Tensor, " places"]:
    """Return addresses in memory as a tensor on a device: as long as weights stay where they are, it is the same one."""
    return torch.tensor(places, dtype=torch.int64, device=device)


def _stored(weight: Weight) -> tuple[str, Tensor, Tensor, tuple[int, ...]]:
    """Return the name of a weight's format, its codes, its scales (any tensor if it has none) and the codes' strides."""
    if isinstance(weight, Int8Rows):
        return "int8", weight.codes, weight.absmax, weight.codes.stride()
    if isinstance(weight, Nf4Blocks):
        return "nf4", weight.packed, weight.absmax, (weight.width, 1)
    return "dense", weight, weight, weight.stride()


@triton.jit
@no_type_check
def _dot(p, q, total, EXACT: tl.constexpr, PIECE: tl.constexpr):
    """Return total + p q in float32: (m, k) (k, n)."""
    if EXACT:
        return tl.dot(p, q, total, input_precision="tf32x3")
    p_high, p_low = _split(p, PIECE)
    q_high, q_low = _split(q, PIECE)
    total = tl.dot(p_low, q_high, total)
    total = tl.dot(p_high, q_low, total)
    return tl.dot(p_high, q_high, total)


@triton.jit
@no_type_check
def _split(x, PIECE: tl.constexpr):
    """Return the two bfloat16 numbers that add up to x but for 2^-17, in a type that holds them."""
    high = x.to(tl.bfloat16, fp_downcast_rounding="rtne")
    low = (x - high.to(tl.float32)).to(tl.bfloat16, fp_downcast_rounding="rtne")
    return high.to(PIECE), low.to(PIECE)


@triton.jit
@no_type_check
def _weight(weight, scales, code, i, start, rows, columns, stride_row, stride_column, FORM: tl.constexpr,
            BM: tl.constexpr, BN: tl.constexpr):  # fmt: skip
    """Return a tile of W0, rows i and BN columns from `start`, in float32."""
    if FORM == "nf4":
        # Two codes a byte, the first in the high half; a block's 64 weights are 32 bytes, `columns` is even and rows may be padded.
        half = start // 2 + tl.arange(0, BN // 2)
        at = i[:, None] * (stride_row // 2) + half[None, :]
        inside = (i < rows)[:, None] & (half < columns // 2)[None, :]
        byte = tl.load(weight + at, mask=inside, other=0).to(tl.int32)
        pairs = tl.join(tl.load(code + (byte >> 4)), tl.load(code + (byte & 15)))
        absmax = tl.load(scales + at // 32, mask=inside, other=0.0)
        return (pairs * absmax[:, :, None]).reshape(BM, BN)
    j = start + tl.arange(0, BN)
    inside = (i < rows)[:, None] & (j < columns)[None, :]
    tile = tl.load(weight + i[:, None] * stride_row + j[None, :] * stride_column, mask=inside, other=0).to(tl.float32)
    if FORM == "int8":
        tile *= tl.load(scales + i, mask=i < rows, other=0.0)[:, None] / 127.0
    return tile


@triton.jit
@no_type_check
def _eq10(
    weight, scales, places, code, a, b, grad_a, grad_b, row_parts, column_parts,
    rows, columns, stride_row, stride_column, scaling, tiles,
    FORM: tl.constexpr, POWER: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, EXACT: tl.constexpr,
    PIECE: tl.constexpr, ALIGNED: tl.constexpr, RANK: tl.constexpr, K: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """Write the row sums of every column block and the column sums of every chunk of `tiles` row tiles, of every weight."""
    block, chunk = tl.program_id(0), tl.program_id(1)
    own = tl.program_id(2).to(tl.int64)
    weight = tl.load(places + own).to(weight.dtype)
    scales = tl.load(places + tl.num_programs(2) + own).to(scales.dtype)
    if ALIGNED:
        weight, scales = tl.multiple_of(weight, 16), tl.multiple_of(scales, 16)
    a, grad_a = a + own * RANK * columns, grad_a + own * RANK * columns
    b, grad_b = b + own * RANK * rows, grad_b + own * RANK * rows
    row_parts += (own * tl.num_programs(0) + block) * rows
    column_parts += (own * tl.num_programs(1) + chunk) * columns
    k = tl.arange(0, K)
    j = block * BN + tl.arange(0, BN)
    first, second = k < RANK, (k >= RANK) & (k < 2 * RANK)
    first_q = first[:, None] & (j < columns)[None, :]
    second_q = second[:, None] & (j < columns)[None, :]
    at_q = k[:, None] * columns + j[None, :]
    at_second = (k - RANK)[:, None] * columns + j[None, :]
    q_merged = tl.load(a + at_q, mask=first_q, other=0.0).to(tl.float32) * scaling
    q_estimate = tl.load(grad_a + at_q, mask=first_q, other=0.0).to(tl.float32)
    q_estimate += tl.load(a + at_second, mask=second_q, other=0.0).to(tl.float32)
    q_estimate -= tl.load(grad_a + at_second, mask=second_q, other=0.0).to(tl.float32)
    column_sums = tl.zeros((BM, BN), tl.float32)
    for tile in tl.range(0, tl.minimum(tiles, tl.cdiv(rows, BM) - chunk * tiles), num_stages=STAGES):
        i = (chunk * tiles + tile) * BM + tl.arange(0, BM)
        at_p = i[:, None] * RANK + k[None, :]
        p = tl.load(b + at_p, mask=(i < rows)[:, None] & first[None, :], other=0.0).to(tl.float32)
        p += tl.load(grad_b + at_p - RANK, mask=(i < rows)[:, None] & second[None, :], other=0.0).to(tl.float32)
        w = _weight(weight, scales, code, i, block * BN, rows, columns, stride_row, stride_column, FORM, BM, BN)
        w = _dot(p, q_merged, w, EXACT, PIECE)
        estimate = _dot(p, q_estimate, tl.zeros((BM, BN), tl.float32), EXACT, PIECE)
        saliency = estimate * w
        saliency = saliency * saliency if POWER == 2 else tl.abs(saliency)
        if ROWS:
            tl.store(row_parts + i, tl.sum(saliency, 1), mask=i < rows)
        if COLUMNS:
            column_sums += saliency
    if COLUMNS:
        tl.store(column_parts + j, tl.sum(column_sums, 0), mask=j < columns)
