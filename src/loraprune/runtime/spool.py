"""Tensors that are set aside for every layer: a few in memory, the others in a file, so that memory does not grow with depth."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from mmap import ALLOCATIONGRANULARITY
from typing import IO

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

IN_MEMORY = 2**28
"""bytes that one spool holds in memory, about as much as one block of a 7B model in float32; further tensors go to the folder for
temporary files, which TMPDIR chooses"""


class Spool(Mapping[str, Tensor]):
    """Named tensors that are written part by part and read one at a time: what is read from the file is in memory while it is in use.

    The file has no name, so that a killed run leaves none.
    """

    def __init__(self, *, in_memory: int | None = None) -> None:
        """Take the bytes to hold in memory; None for `IN_MEMORY`."""
        self._places: dict[str, _Held | _Filed] = {}
        self._left = IN_MEMORY if in_memory is None else in_memory
        self._end = 0
        self._file: IO[bytes] | None = None

    def add(self, name: str, part: Shaped[Tensor, "some *rest"], *, of: int | None = None) -> None:
        """Append a part, on any device, to the tensor of this name, which has `of` entries in the end; None for those of this part.

        Raises:
            OSError: if the disk is full.
        """
        part = part.detach()
        if name not in self._places:
            self._places[name] = self._place((len(part) if of is None else of, *part.shape[1:]), part.dtype)
        self._places[name].append(part)

    def put(self, name: str, tensor: Shaped[Tensor, "all *rest"]) -> None:
        """Store a whole tensor, in the place of an earlier one of this name if that has room for it."""
        former = self._places.pop(name, None)
        if isinstance(former, _Filed) and tensor.nbytes <= former.size:
            self._places[name] = _Filed(former.file, former.start, former.size, tuple(tensor.shape), tensor.dtype)
        self.add(name, tensor)

    def _place(self, shape: tuple[int, ...], dtype: torch.dtype) -> _Held | _Filed:
        size = int(np.prod(shape)) * dtype.itemsize
        if size <= self._left:
            self._left -= size
            return _Held(torch.empty(shape, dtype=dtype))
        if self._file is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - the next line closes it
            weakref.finalize(self, self._file.close)
        start, self._end = self._end, self._end + -(-size // ALLOCATIONGRANULARITY) * ALLOCATIONGRANULARITY
        return _Filed(self._file, start, size, shape, dtype)

    def __getitem__(self, name: str) -> Shaped[Tensor, "all *rest"]:
        """Read a tensor, all parts of which are there."""
        return self._places[name].read()

    def __iter__(self) -> Iterator[str]:
        """Yield all names."""
        return iter(self._places)

    def __len__(self) -> int:
        """Return how many tensors there are."""
        return len(self._places)


@dataclass(slots=True)
class _Held:
    """A tensor in memory."""

    tensor: Tensor
    written: int = 0

    def append(self, part: Tensor) -> None:
        self.tensor[self.written : self.written + len(part)] = part
        self.written += len(part)

    def read(self) -> Tensor:
        return self.tensor


@dataclass(slots=True)
class _Filed:
    """A tensor in a file."""

    file: IO[bytes]
    start: int
    size: int
    """bytes that there is room for"""
    shape: tuple[int, ...]
    dtype: torch.dtype
    written: int = 0
    """bytes"""

    def append(self, part: Tensor) -> None:
        self.file.seek(self.start + self.written)
        self.written += self.file.write(part.cpu().contiguous().view(torch.uint8).numpy().data)
        self.file.flush()

    def read(self) -> Tensor:
        """Map it, privately: the system reads it when it is used, and may drop it."""
        values = np.memmap(self.file, np.uint8, "c", self.start, (self.written,))
        return torch.from_numpy(values).view(self.dtype).view(self.shape)
