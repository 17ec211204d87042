"""What the kernels read: a weight as it is stored, and LoRA's factors with their gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float, Int8, UInt8
from torch import Tensor

NF4_LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""Source: Dettmers et al., QLoRA, arXiv 2305.14314, appendix E"""
NF4_BLOCK = 64
"""weights that share one scale"""


@dataclass(frozen=True, slots=True)
class Int8Rows:
    """A weight as LLM.int8 stores it: W = codes * absmax / 127, one absmax a row (bitsandbytes: `CB` and `SCB`)."""

    codes: Int8[Tensor, "out in_"]
    absmax: Float[Tensor, " out"]

    @property
    def shape(self) -> tuple[int, int]:
        """Return (out, in)."""
        return self.codes.shape[0], self.codes.shape[1]

    @property
    def device(self) -> torch.device:
        """Return where the codes are."""
        return self.codes.device


@dataclass(frozen=True, slots=True)
class Nf4Blocks:
    """A weight as QLoRA stores it: NF4 codes in row order, two a byte, the first in the high half; an absmax for every 64.

    Double quantisation of the absmax is undone by whoever makes this: they are float32 here.
    """

    packed: UInt8[Tensor, " bytes"]
    absmax: Float[Tensor, " blocks"]
    shape: tuple[int, int]
    """(out, in), with an even `in`"""

    @property
    def device(self) -> torch.device:
        """Return where the codes are."""
        return self.packed.device


Weight: TypeAlias = Float[Tensor, "out in_"] | Int8Rows | Nf4Blocks


@dataclass(frozen=True, slots=True)
class Factors:
    """LoRA of one projection, W = W0 + scaling * B A, and the gradients of A and B."""

    a: Float[Tensor, "rank in_"]
    b: Float[Tensor, "out rank"]
    grad_a: Float[Tensor, "rank in_"]
    grad_b: Float[Tensor, "out rank"]
    scaling: float

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return A, B and their gradients."""
        return self.a, self.b, self.grad_a, self.grad_b


def nf4_levels(device: torch.device) -> Float[Tensor, "16"]:
    """Return the 16 levels of NF4 on a device."""
    return torch.tensor(NF4_LEVELS, device=device)
