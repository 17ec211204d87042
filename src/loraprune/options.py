"""Options that several commands share, each with its help text and its check.

Knows nothing about torch, so that `--help` answers at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from loraprune.errors import ConfigError

Device = Literal["auto", "cpu", "cuda", "mps"]
Dtype = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Base of all options: checked as a whole when made, each part adding what it finds wrong."""

    def __post_init__(self) -> None:
        raise_all(self.problems())

    def problems(self) -> list[str]:
        """Return one sentence for every option that is wrong."""
        return []


@dataclass(frozen=True, kw_only=True)
class ModelOptions(Options):
    """Which model."""

    model: str
    """folder or hub id; `demo` is the model that ships with the package"""
    task: str | None = None
    """what the model is for: causal-lm, masked-lm, sequence-classification, ...; without it the head in its configuration
    decides, and for a model that is only pre-trained the columns of the data"""
    trust_remote_code: bool = False
    """dangerous: run modelling code that comes with the checkpoint"""

    def problems(self) -> list[str]:
        """Return one sentence for every option that is wrong."""
        return [*super().problems(), *failed((bool(self.model), "--model is empty: name a folder or a hub id"))]


@dataclass(frozen=True, kw_only=True)
class MachineOptions(Options):
    """Where and in which precision."""

    device: Device = "auto"
    """where to run"""
    dtype: Dtype = "auto"
    """precision of the weights; auto keeps the checkpoint's, but computes in float32 on a CPU"""


@dataclass(frozen=True, kw_only=True)
class BatchOptions(Options):
    """How much goes through the model at a time."""

    batch: int = 8
    """rows in a micro-batch"""
    length: int = 512
    """tokens in a row; capped at what the model was built for"""
    checkpointing: bool = False
    """recompute activations in the backward pass: less memory, more time"""

    def problems(self) -> list[str]:
        """Return one sentence for every option that is wrong."""
        return [
            *super().problems(),
            *failed(
                (self.batch > 0, f"--batch {self.batch}: at least 1 is needed"),
                (self.length > 1, f"--length {self.length}: at least 2 is needed"),
            ),
        ]


@dataclass(frozen=True, kw_only=True)
class AdapterOptions(Options):
    """LoRA, and the seed of a run."""

    rank: int = 8
    """rank of LoRA"""
    alpha: float = 16.0
    """LoRA is scaled by alpha / rank"""
    dropout: float = 0.05
    """dropout on the input of LoRA"""
    seed: int = 0
    """seed of data order, LoRA's start, dropout and the random criterion"""

    @property
    def order_seed(self) -> int:
        """Return the seed of the order of rows and of dropout."""
        return self.seed

    def problems(self) -> list[str]:
        """Return one sentence for every option that is wrong."""
        return [
            *super().problems(),
            *failed(
                (self.rank > 0, f"--rank {self.rank}: at least 1 is needed"),
                (self.alpha > 0 and math.isfinite(self.alpha), f"--alpha {self.alpha}: a positive number is needed"),
                (0 <= self.dropout < 1, f"--dropout {self.dropout}: a fraction in [0, 1) is needed"),
                (0 <= self.seed < 2**32, f"--seed {self.seed}: a whole number from 0 to 2^32 - 1 is needed"),
            ),
        ]


def failed(*checks: tuple[bool, str]) -> list[str]:
    """Return the messages of the checks that do not hold."""
    return [message for holds, message in checks if not holds]


def raise_all(problems: list[str]) -> None:
    """Raise one ConfigError that lists every problem."""
    if problems:
        raise ConfigError("; ".join(problems))
