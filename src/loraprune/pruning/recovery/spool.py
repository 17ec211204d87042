"""Tensors that are written part by part and read often: in memory where they are small, otherwise in files."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from typing import IO

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

IN_MEMORY = 2**31
"""bytes that are held in memory; larger tensors are stored in the folder for temporary files, which TMPDIR chooses"""


class Spool:
    """Named tensors, each put together from parts along the first dimension. Its files have no name, so that a killed run leaves none."""

    def __init__(self, expected: int) -> None:
        self.in_files = expected > IN_MEMORY
        """whether `expected` bytes are too many for memory"""
        self._parts: dict[str, list[Tensor]] = {}
        self._files: dict[str, IO[bytes]] = {}
        self._open = ExitStack()

    def add(self, name: str, part: Shaped[Tensor, "some *rest"]) -> None:
        """Append a part, which is in CPU memory, to the tensor of this name."""
        part = part.contiguous()
        if self.in_files:
            if name not in self._files:
                self._files[name] = self._open.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - the stack closes it
            self._files[name].write(part.view(torch.uint8).numpy().tobytes())
            part = part.new_empty(0, *part.shape[1:])  # a slice of it would hold all of its memory
        self._parts.setdefault(name, []).append(part)

    def tensors(self) -> dict[str, Shaped[Tensor, "all *rest"]]:
        """Return the tensor for reading, and drop the reference to it."""
        with self._open:
            return {name: self._together(name, self._parts.pop(name)) for name in list(self._parts)}

    def _together(self, name: str, parts: list[Tensor]) -> Shaped[Tensor, "all *rest"]:
        if not self.in_files:
            return torch.cat(parts)
        self._files[name].flush()
        values = np.memmap(self._files[name], np.uint8, "c")  # outlives the open file; the system pages it in and out
        return torch.from_numpy(values).view(parts[0].dtype).view(-1, *parts[0].shape[1:])
