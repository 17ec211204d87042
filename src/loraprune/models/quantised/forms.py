"""Weights as they are stored, dense or quantised: the inputs of the scoring kernels.

Quantised weights are cut here, without loss and without the library that made them.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float, Int, Int8, UInt8
from torch import Tensor
from torch.nn import functional

NF4_LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""the values of NF4. Source: Dettmers et al., QLoRA (arXiv 2305.14314)"""
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

    def rows(self, start: int, stop: int) -> Float[Tensor, "rows in_"]:
        """Return the numbers that some rows stand for."""
        return self.codes[start:stop] * (self.absmax[start:stop, None] / 127)

    def select(self, dim: int, index: Int[Tensor, " left"]) -> Int8Rows:
        """Return some rows (`dim` 0) or columns (1): every code and scale is kept."""
        return Int8Rows(self.codes.index_select(dim, index), self.absmax[index] if dim == 0 else self.absmax)

    def zeroed(self, kept: Bool[Tensor, "out in_"]) -> Int8Rows:
        """Return the weight with zeros where `kept` is false."""
        return Int8Rows(self.codes.masked_fill(~kept, 0), self.absmax)


@dataclass(frozen=True, slots=True)
class Nf4Blocks:
    """A weight as QLoRA stores it: NF4 codes in row order, two a byte, the first in the high half; an absmax for every 64.

    Double quantisation of the absmax is undone by whoever makes this: they are float32 here. Rows may be padded with columns that
    do not count.
    """

    packed: UInt8[Tensor, " bytes"]
    absmax: Float[Tensor, " blocks"]
    shape: tuple[int, int]
    """(out, in), padding left out; the kernels need an even `in`"""

    @property
    def device(self) -> torch.device:
        """Return where the codes are."""
        return self.packed.device

    @property
    def width(self) -> int:
        """Return the columns of a row, padding included."""
        return 2 * len(self.packed) // self.shape[0]

    def rows(self, start: int, stop: int) -> Float[Tensor, "rows in_"]:
        """Return the numbers that some rows stand for."""
        first, last = start * self.width, stop * self.width
        blocks = self.absmax[first // NF4_BLOCK : -(-last // NF4_BLOCK)].repeat_interleave(NF4_BLOCK)
        skipped = first % NF4_BLOCK
        levels = nf4_levels(self.device)[self._codes(first, last)]
        return (levels * blocks[skipped : skipped + last - first]).view(stop - start, self.width)[:, : self.shape[1]]

    def _codes(self, first: int, last: int) -> Int[Tensor, " weights"]:
        """Return the codes of some weights in row order."""
        pairs = self.packed[first // 2 : -(-last // 2)].int()
        return torch.stack((pairs >> 4, pairs & 15), dim=1).flatten()[first % 2 :][: last - first]

    def select(self, dim: int, index: Int[Tensor, " left"]) -> Nf4Blocks | None:
        """Return some rows (`dim` 0) or columns (1) with the codes and scales they have, None where blocks would be torn."""
        rows = self.shape[0]
        if self.width % NF4_BLOCK:
            return None
        codes, absmax = self.packed.view(rows, -1, NF4_BLOCK // 2), self.absmax.view(rows, -1)
        if dim == 0:
            return Nf4Blocks(codes[index].flatten(), absmax[index].flatten(), (len(index), self.shape[1]))
        # 64 weights side by side in a row share one absmax, so that columns can be cut without quantising again only by such blocks: the
        # columns left must be whole ones. Channels of FFNs rarely are, whole heads of 64 channels always. Padding columns, which the last
        # block may have, are no part of `index`. Source: Dettmers et al., QLoRA (arXiv 2305.14314), block-wise quantization.
        blocks = index[::NF4_BLOCK] // NF4_BLOCK
        whole = blocks[:, None] * NF4_BLOCK + torch.arange(NF4_BLOCK, device=index.device)
        if not torch.equal(whole[whole < self.shape[1]], index):
            return None
        return Nf4Blocks(codes[:, blocks].flatten(), absmax[:, blocks].flatten(), (rows, len(index)))

    def zeroed(self, kept: Bool[Tensor, "out in_"]) -> Nf4Blocks:
        """Return the weight with zeros where `kept` is false: NF4 has a level for zero."""
        padded = functional.pad(kept, (0, self.width - self.shape[1]))
        codes = self._codes(0, padded.numel()).masked_fill(~padded.flatten(), NF4_LEVELS.index(0.0))
        return Nf4Blocks(pack(codes), self.absmax, self.shape)


def pack(codes: Int[Tensor, " weights"]) -> UInt8[Tensor, " bytes"]:
    """Return NF4 codes two a byte, the first in the high half."""
    pairs = functional.pad(codes, (0, len(codes) % 2)).view(-1, 2)
    return (pairs[:, 0] << 4 | pairs[:, 1]).to(torch.uint8)


Quantised: TypeAlias = Int8Rows | Nf4Blocks
Weight: TypeAlias = Float[Tensor, "out in_"] | Quantised


def weight_rows(weight: Weight, start: int, stop: int) -> Float[Tensor, "rows in_"]:
    """Return some rows of a weight as numbers: dense ones in their own dtype, others in float32."""
    return weight[start:stop] if isinstance(weight, Tensor) else weight.rows(start, stop)


@functools.cache
def nf4_levels(device: torch.device) -> Float[Tensor, "16"]:
    """Return the 16 levels of NF4 on a device, to be read only."""
    return torch.tensor(NF4_LEVELS, device=device)
