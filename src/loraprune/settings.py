"""Options of the commands that look at models and do not train.

Knows nothing about torch, so that `--help` answers at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from loraprune.config import Device, Dtype, LoRAPruneConfig, raise_all


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """Show a model's family, groups, units and parameters a unit, or say why it cannot be pruned."""

    model: str
    """folder or hub id; `demo` is the one that ships with the package"""
    trust_remote_code: bool = False
    """dangerous: run modelling code that comes with the checkpoint"""


@dataclass(frozen=True, kw_only=True)
class PlanConfig(LoRAPruneConfig):
    """Predict shapes, parameters, file size and training memory from the configuration alone."""

    model: str
    """folder or hub id; no weights are read"""
    batch: int = 8
    """rows in a micro-batch"""
    length: int = 512
    """tokens in a row"""
    checkpointing: bool = False
    """recompute activations in the backward pass"""
    dtype: Dtype = "bfloat16"
    """precision of the weights while training"""
    trust_remote_code: bool = False
    """dangerous: run modelling code that comes with the checkpoint"""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Measure perplexity, with its protocol recorded."""

    model: str
    """folder or hub id"""
    data: str
    """text to measure on: a file, a folder, a hub id, or `stdlib` (its held-out modules)"""
    against: str | None = None
    """a second model to show beside it, usually the dense one"""
    length: int = 512
    """tokens in a window; the paper's protocols use 128 and 2048"""
    batch: int = 8
    """windows at a time"""
    device: Device = "auto"
    """where to run"""
    dtype: Dtype = "auto"
    """precision of the weights; auto keeps the checkpoint's, but float32 on a CPU"""
    trust_remote_code: bool = False
    """dangerous: run modelling code that comes with the checkpoint"""

    def __post_init__(self) -> None:
        raise_all(
            [f"--{name} {value}: at least {least} is needed" for name, value, least in
             (("length", self.length, 2), ("batch", self.batch, 1)) if value < least]
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """Measure parameters, MACs, latency, throughput and file size, side by side in one process."""

    model: str
    """folder or hub id, usually the pruned model"""
    against: str | None = None
    """the model to compare with, usually the dense one; runs alternate A B A B"""
    batches: list[int] = field(default_factory=lambda: [1, 16])
    """batch sizes of the prefill"""
    length: int = 256
    """tokens in a prefill"""
    tokens: int = 32
    """tokens to generate for the decoding speed"""
    repeats: int = 10
    """timed runs of each"""
    device: Device = "auto"
    """where to run"""
    dtype: Dtype = "auto"
    """precision of the weights; auto keeps the checkpoint's, but float32 on a CPU"""
    trust_remote_code: bool = False
    """dangerous: run modelling code that comes with the checkpoint"""

    def __post_init__(self) -> None:
        values = [
            ("length", self.length),
            ("tokens", self.tokens),
            ("repeats", self.repeats),
            *(("batches", b) for b in self.batches),
        ]
        raise_all([f"--{name} {value}: at least 1 is needed" for name, value in values if value < 1])


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Prune the model that ships with the package to 50 %, offline, and show dense against pruned."""

    output: str = "demo-pruned"
    """folder to write"""
    steps: int = 120
    """optimiser steps"""
    ratio: float = 0.5
    """fraction of the prunable parameters to remove"""
    seed: int = 0
    """seed of everything random"""
    overwrite: bool = False
    """replace the output folder if it exists"""
