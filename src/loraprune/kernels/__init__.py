"""Fused kernels: what a criterion may use instead of tiles of PyTorch, where the device and the tensors allow it.

Triton is optional and imported at the first use. Knows nothing about models, units or criteria.
"""

from __future__ import annotations

import functools
import importlib.util

import torch
from jaxtyping import Float
from torch import Tensor

from loraprune.kernels.forms import Factors, Int8Rows, Nf4Blocks, Weight
from loraprune.kernels.tiles import eq10_tiles

__all__ = ["Factors", "Int8Rows", "Nf4Blocks", "Weight", "eq10_fits", "eq10_sums", "eq10_tiles"]

FORMATS = (torch.float32, torch.bfloat16, torch.float16)
MAX_RANK = 128
"""the slices of B and A that a tile needs stay on the chip up to here"""
MAX_ENTRIES = 2**31 - 1
"""the kernel counts in 32 bits"""


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@functools.cache
def _multiplies_bfloat16(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= (8, 0)


def eq10_fits(weight: Weight, factors: Factors) -> bool:
    """Say whether `eq10_sums` can be used: on a CUDA device of Ampere or later, with Triton, for these formats and sizes."""
    rows, columns = weight.shape
    device = factors.a.device
    return (
        device.type == "cuda"
        and weight.device == device
        and _has_triton()
        and _multiplies_bfloat16(device)
        and factors.a.shape[0] <= MAX_RANK
        and rows * columns <= MAX_ENTRIES
        and all(tensor.dtype in FORMATS for tensor in factors.tensors())
        and (not isinstance(weight, Tensor) or weight.dtype in FORMATS)
        and (not isinstance(weight, Nf4Blocks) or columns % 2 == 0)
    )


def eq10_sums(
    weight: Weight, factors: Factors, *, power: int, rows: bool = True, columns: bool = True
) -> tuple[Float[Tensor, " out"] | None, Float[Tensor, " in_"] | None]:
    """Return the row sums and the column sums of |(dB A + B dA - dB dA) * (W0 + s B A)|^power; None for what is not wanted.

    The weight is read once and nothing of its size is written. The same input gives the same bits.

    Source: Eq 10, and Eq 4 up to the sum over a unit's rows or columns.
    """
    from loraprune.kernels.eq10 import launch

    return launch(weight, factors, power=power, rows=rows, columns=columns)
