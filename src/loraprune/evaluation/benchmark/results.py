"""Sizes and speeds of several models, and their ratios to the first.

Knows nothing about how anything was measured.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, cast

from loraprune.evaluation.timing import Spread


@dataclass(frozen=True, slots=True)
class Measurement:
    """Size and speed of one model. Keys of the prefill figures are batch sizes."""

    parameters: int
    """a tensor shared by several modules counts once"""
    weight_bytes: int
    file_bytes: int | None
    macs_per_token: int
    prefill_seconds: dict[int, Spread]
    prefill_tokens_per_second: dict[int, float]
    decode_seconds: Spread | None
    """one greedy generation at batch 1, the prompt included; None for a model that cannot generate"""
    decode_tokens_per_second: float | None
    """new tokens only, over the whole time"""
    peak_memory_bytes: int | None
    """weights plus what the calls allocate, on CUDA; elsewhere the models of one process cannot be separated"""
    engine: str = "transformers"
    """what runs the model"""


@dataclass(frozen=True, slots=True)
class Ratios:
    """One model relative to the first: sizes as this / first, speed-ups as first / this, so above 1 is faster."""

    parameters: float
    weight_bytes: float
    file_bytes: float | None
    macs: float
    expected_speedup: float
    """MACs of the first / MACs of this"""
    prefill_speedup: dict[int, float]
    """by batch size, as far as both have it: median of the ratios of samples taken next to each other in time; of models that were
    not timed in turns, ratio of the medians"""
    achieved: dict[int, float]
    """prefill_speedup / expected_speedup"""
    decode_speedup: float | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Measurements by model name, the ratios of each to the first, and how they were taken."""

    rows: Mapping[str, Measurement]
    ratios: Mapping[str, Ratios]
    protocol: Mapping[str, object]

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values; batch sizes become strings."""
        return json.loads(json.dumps(asdict(self)))


def joined(first: Comparison, then: Comparison) -> Comparison:
    """Return two measurements as one: of models that were not in memory together, and so not timed in turns."""
    rows = {**first.rows, **then.rows}
    reference = next(iter(rows.values()))
    dtypes = {**cast(Any, first.protocol["dtype"]), **cast(Any, then.protocol["dtype"])}
    protocol = {**then.protocol, "order": "one after the other", "dtype": dtypes}
    return Comparison(rows, {name: ratios_of(reference, row, in_turns=False) for name, row in rows.items()}, protocol)


def ratios_of(first: Measurement, this: Measurement, *, in_turns: bool = True) -> Ratios:
    """Return the sizes and speeds of one model relative to the first; samples are paired only if both were timed in turns."""

    def speedup(slow: Spread, fast: Spread) -> float:
        if not in_turns:
            return slow.median / fast.median
        return median(s / f for s, f in zip(slow.samples, fast.samples, strict=True))

    expected = first.macs_per_token / this.macs_per_token
    both = [batch for batch in this.prefill_seconds if batch in first.prefill_seconds]
    prefill = {batch: speedup(first.prefill_seconds[batch], this.prefill_seconds[batch]) for batch in both}
    decodes = first.decode_seconds, this.decode_seconds
    return Ratios(
        parameters=this.parameters / first.parameters,
        weight_bytes=this.weight_bytes / first.weight_bytes,
        file_bytes=this.file_bytes / first.file_bytes if this.file_bytes and first.file_bytes else None,
        macs=1 / expected,
        expected_speedup=expected,
        prefill_speedup=prefill,
        achieved={batch: value / expected for batch, value in prefill.items()},
        decode_speedup=speedup(decodes[0], decodes[1]) if decodes[0] and decodes[1] else None,
    )
