"""Targets that are about how a pruned model is stored and run: bytes of its file, memory of inference, and speed.

Imports no torch, so that `--help` is fast.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from loraprune.config.base import Options, failed, idle_options
from loraprune.config.values import parse_bytes
from loraprune.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class DeploymentOptions(Options):
    """What is asked of the pruned model where it is used, instead of a ratio."""

    file_size: str | None = None
    """largest size of the saved weights instead of --ratio, such as 200MB (millions of bytes) or 190MiB, in the precision that is saved"""
    memory: str | None = None
    """largest memory of inference instead of --ratio, such as 4GB: the weights in the precision that is saved, and the key-value cache
    of one sequence of --context tokens"""
    speedup: float | None = None
    """speed of the pruned model divided by that of the dense one, instead of --ratio, such as 1.5; shapes with random weights are timed
    on this device before training; `plan` counts multiplications instead"""
    timed: Literal["prefill", "decoding"] = "prefill"
    """what --speedup measures, for one sequence at a time: prefill reads --context tokens, decoding writes 32 tokens"""
    context: int | None = None
    """tokens of a sequence for --memory and --speedup, at most the model's maximum; by default 4096 in the cache and 256 in a timed
    prefill"""

    def problems(self) -> list[str]:
        """Return one sentence for every option that is wrong."""
        wrong = failed(
            (
                self.speedup is None or 1 < self.speedup < math.inf,
                f"--speedup {self.speedup}: a factor above 1 is needed, such as 1.5",
            ),
            (self.context is None or self.context > 0, f"--context {self.context}: at least 1 is needed"),
        )
        return [*super().problems(), *self._wrong_bytes(), *wrong]

    def _wrong_bytes(self) -> Iterator[str]:
        for option, text in (("file-size", self.file_size), ("memory", self.memory)):
            try:
                parse_bytes(text if text is not None else "1", option)
            except ConfigError as error:
                yield str(error)

    def idle(self) -> list[str]:
        """Return one sentence for every option that is given and changes nothing beside the others."""
        found = super().idle()
        if self.memory is None and (self.speedup is None or self.timed == "decoding"):
            found += idle_options(self, "it is about --memory, and --speedup of a prefill", "context")
        if self.speedup is None:
            found += idle_options(self, "it is about --speedup", "timed")
        return found
