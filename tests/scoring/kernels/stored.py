"""Weights as quantisers store them, in a few slow lines, and what they stand for."""

from __future__ import annotations

import torch
from torch import Tensor

from loraprune.models.quantised.forms import NF4_BLOCK, NF4_LEVELS, Int8Rows, Nf4Blocks
from loraprune.scoring.kernels.factors import Factors

FORMS = ("float32", "bfloat16", "float16", "int8", "nf4")


def to_int8(dense: Tensor) -> tuple[Int8Rows, Tensor]:
    """Return a weight of LLM.int8 and the float64 matrix it stands for."""
    absmax = dense.abs().amax(1)
    codes = (dense / absmax[:, None] * 127).round().to(torch.int8)
    return Int8Rows(codes, absmax), codes.double() * absmax.double()[:, None] / 127


def to_nf4(dense: Tensor) -> tuple[Nf4Blocks, Tensor]:
    """Return a weight of QLoRA and the float64 matrix it stands for, number by number; the last block may be short."""
    levels = torch.tensor(NF4_LEVELS, device=dense.device)
    blocks = dense.flatten().split(NF4_BLOCK)
    absmax = torch.stack([block.abs().max() for block in blocks])
    codes = torch.cat(
        [(block[:, None] / most - levels).abs().argmin(1) for block, most in zip(blocks, absmax, strict=True)]
    )
    packed = (codes[0::2] * 16 + codes[1::2]).to(torch.uint8)
    values = torch.cat([levels.double()[part] * most.double()
                        for part, most in zip(codes.split(NF4_BLOCK), absmax, strict=True)])  # fmt: skip
    return Nf4Blocks(packed, absmax, (dense.shape[0], dense.shape[1])), values.view(dense.shape)


def stored(form: str, dense: Tensor) -> tuple[Tensor | Int8Rows | Nf4Blocks, Tensor]:
    """Return a weight in a format and the float64 matrix it stands for."""
    if form == "int8":
        return to_int8(dense)
    if form == "nf4":
        return to_nf4(dense)
    weight = dense.to(getattr(torch, form))
    return weight, weight.double()


def random_factors(out: int, in_: int, rank: int, device: torch.device) -> Factors:
    """Return LoRA of one weight in the middle of training: s B A as large as the weight, gradients of a tenth."""
    a, grad_a = torch.randn(2, 1, rank, in_, device=device)
    b, grad_b = torch.randn(2, 1, out, rank, device=device)
    return Factors(a, 0.1 * b, 0.1 * grad_a, 0.1 * grad_b, scaling=2.0)


def expected(
    weight: Tensor, factors: Factors, *, power: int, terms: tuple[int, int, int] = (1, 1, -1)
) -> tuple[Tensor, Tensor]:
    """Return the sums of Eq 10 over rows and columns of one weight in float64; `terms` are the signs of Eq 9."""
    a, b, grad_a, grad_b = (tensor[0].double() for tensor in factors.tensors())
    products = (grad_b @ a, b @ grad_a, grad_b @ grad_a)
    estimate = sum(sign * product for sign, product in zip(terms, products, strict=True))
    saliency = (estimate * (weight + factors.scaling * b @ a)).abs() ** power
    return saliency.sum(1), saliency.sum(0)
