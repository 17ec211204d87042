"""What the training of a run took and how it went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(slots=True)
class Training:
    """What the training took and how it went."""

    steps: int
    seconds: float
    """training with scoring, slicing and merging, without loading and evaluating"""
    peak_memory_bytes: int
    curve: Sequence[Mapping[str, int | float]]
    removals: Sequence[Mapping[str, int | float]]
    skipped: Sequence[Mapping[str, int | str]]
    """step and reason of those without an update, as something in them was no number"""
    protocol: Mapping[str, object]
    trainable: int
    """parameters that learnt at the start: LoRA's factors, and all of modules that are new"""
    new: Sequence[str] = ()
    """modules that started anew and were trained whole, not by LoRA: what was dense knew nothing by them"""
    evaluations: Sequence[Mapping[str, int | float | None]] = ()
    """evaluations on held-out data on the way"""
    kept_step: int | None = None
    """the step whose adapters were kept, if the best were looked for"""
