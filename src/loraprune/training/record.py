"""The cost and the course of a run's training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(slots=True)
class Training:
    """The cost and the course of a training."""

    steps: int
    seconds: float
    """training with scoring, slicing and merging, without loading and evaluation"""
    peak_memory_bytes: int
    curve: Sequence[Mapping[str, int | float]]
    removals: Sequence[Mapping[str, int | float]]
    skipped: Sequence[Mapping[str, int | str]]
    """step and reason of those without an update because of a non-finite value"""
    protocol: Mapping[str, object]
    trainable: int
    """parameters that were trainable at the start: LoRA's factors, and all of the new modules"""
    new: Sequence[str] = ()
    """modules that were randomly initialised and fully trained, without LoRA: in the dense model they were untrained"""
    evaluations: Sequence[Mapping[str, int | float | None]] = ()
    """evaluations on held-out data during training"""
    kept_step: int | None = None
    """the step whose adapters were kept, if early stopping was on"""
