"""Fused kernels: what a criterion may use instead of tiles of PyTorch, where the device and the tensors allow it.

Triton is optional and imported at the first use. Knows nothing about models, units or criteria.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from loraprune.models.quantised.forms import Nf4Blocks, Weight
from loraprune.scoring.kernels.factors import Factors
from loraprune.scoring.kernels.tiles import eq10_tiles

__all__ = ["eq10_fits", "eq10_sums", "eq10_tiles"]

FORMATS = (torch.float32, torch.bfloat16, torch.float16)
MAX_RANK = 64
"""the slices of B and A that a tile needs stay on the chip up to here"""
MAX_ENTRIES = 2**31 - 1
"""the kernel counts in 32 bits"""


@functools.cache
def _runs(device: torch.device) -> bool:
    """Return whether the kernel can be built and run on a CUDA device, by doing it once on a weight of 16 x 16."""
    if importlib.util.find_spec("triton") is None or torch.version.cuda is None:
        return False
    if torch.cuda.get_device_capability(device) < (8, 0):  # no BF16 and TF32 products before Ampere
        return False
    try:
        zeros = torch.zeros(1, 16, 16, device=device)
        eq10_sums([zeros[0]], Factors(zeros, zeros, zeros, zeros, scaling=1.0), power=2)
    except Exception as error:
        # Triton builds a launcher with the machine's C compiler: what can be missing there is not ours to list.
        logging.getLogger(__name__).warning("no fused kernel on %s, scoring uses tiles of PyTorch: %s", device, error)
        return False
    return True


def eq10_fits(weight: Weight, factors: Factors) -> bool:
    """Return whether `eq10_sums` can score weights like this one: with Triton, on a CUDA device of Ampere or later."""
    rows, columns = weight.shape
    device = factors.a.device
    return (
        device.type == "cuda"
        and weight.device == device
        and factors.a.shape[1] <= MAX_RANK
        and rows * columns <= MAX_ENTRIES
        and all(tensor.dtype in FORMATS for tensor in factors.tensors())
        and (not isinstance(weight, Tensor) or weight.dtype in FORMATS)
        and (not isinstance(weight, Nf4Blocks) or columns % 2 == 0)
        and _runs(device)
    )


def eq10_sums(
    weights: Sequence[Weight], factors: Factors, *, power: int, rows: bool = True, columns: bool = True
) -> tuple[Float[Tensor, "n out"] | None, Float[Tensor, "n in_"] | None]:
    """Return the row sums and the column sums of |(dB A + B dA - dB dA) * (W0 + s B A)|^power; None for what is not wanted.

    The weights have one shape, format and strides, and are scored together. Each is read once and nothing of its size is written. The
    same input gives the same bits.

    Source: Eq 10, and Eq 4 up to the sum over a unit's rows or columns.
    """
    from loraprune.scoring.kernels.eq10 import launch

    return launch(weights, factors, power=power, rows=rows, columns=columns)
