"""How large and how fast models are, side by side: parameters, MACs, latency, throughput, memory.

Knows nothing about pruning: it compares any models that run on the same device, the first one being the reference.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import GenerationConfig, PreTrainedModel

from loraprune.errors import CheckpointError, ConfigError, UnsupportedModelError, nearest
from loraprune.evaluate import evaluation_mode

SECONDS_AT_LEAST = 0.05
"""a timed stretch repeats its call until it lasts this long, so that the grain of clock and scheduler is small"""

LOOPS_AT_MOST = 10_000
PROMPT_TOKENS = 8
SEED = 0

Call = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Spread:
    """Seconds a call: median and extremes, and the samples in the order taken."""

    median: float
    minimum: float
    maximum: float
    samples: tuple[float, ...]

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        """Return the spread of at least one sample."""
        return cls(statistics.median(samples), min(samples), max(samples), tuple(samples))


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one model takes. Keys of the prefill figures are batch sizes."""

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
    """weights and what the calls allocate beside them, on CUDA; elsewhere one process cannot tell its models apart"""


@dataclass(frozen=True, slots=True)
class Ratios:
    """One model beside the first: sizes as this / first, speed-ups as first / this, so above 1 is faster."""

    parameters: float
    weight_bytes: float
    file_bytes: float | None
    macs: float
    peak_memory: float | None
    expected_speedup: float
    """MACs of the first / MACs of this"""
    prefill_speedup: dict[int, float]
    """by batch size: median of the ratios of samples taken next to each other in time"""
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
        return {"rows": _plain(self.rows), "ratios": _plain(self.ratios), "protocol": _plain(self.protocol)}


def compare_speed(
    models: Mapping[str, PreTrainedModel],
    *,
    batches: Sequence[int] = (1, 16),
    length: int = 256,
    new_tokens: int = 32,
    repeats: int = 10,
    folders: Mapping[str, Path] | None = None,
) -> Comparison:
    """Measure models in one process, in turns (A B A B), after a warm-up of each, on the same random tokens.

    Prefill is a forward pass over `length` tokens with all logits, decoding a greedy generation of `new_tokens` with a
    KV cache from a prompt of 8 tokens. `folders` are the checkpoints of which the weight files are counted.

    Raises:
        ConfigError: a number is below 1, a length exceeds a model's positions, models are on different devices, ...
        CheckpointError: a folder does not exist.
        UnsupportedModelError: a model does not read tokens.
    """
    folders = folders or {}
    _check_numbers({"length": length, "new_tokens": new_tokens, "repeats": repeats}, batches)
    device = _check_models(models, folders, tokens=max(length, PROMPT_TOKENS + new_tokens))
    shapes = [(batch, length) for batch in batches] + [(1, PROMPT_TOKENS)]
    *texts, prompt = _random_tokens(shapes, vocabulary=min(map(_vocabulary, models.values())), device=device)
    prefill = {
        batch: {name: _prefill(model, text) for name, model in models.items()}
        for batch, text in zip(batches, texts, strict=True)
    }
    decode = {name: _decode(m, prompt, new_tokens=new_tokens) for name, m in models.items() if m.can_generate()}
    with ExitStack() as modes:
        for model in models.values():
            modes.enter_context(evaluation_mode(model))
        prefill_seconds = {
            batch: time_in_turns(calls, repeats=repeats, device=device) for batch, calls in prefill.items()
        }
        decode_seconds = time_in_turns(decode, repeats=repeats, device=device)
        peaks = {
            name: _peak_memory(model, [calls[name] for calls in (*prefill.values(), decode) if name in calls])
            for name, model in models.items()
        }
    rows = {}
    for name, model in models.items():
        seconds = {batch: spreads[name] for batch, spreads in prefill_seconds.items()}
        decoded = decode_seconds.get(name)
        rows[name] = Measurement(
            parameters=sum(p.numel() for p in model.parameters()),
            weight_bytes=_weight_bytes(model),
            file_bytes=_file_bytes(folders[name]) if name in folders else None,
            macs_per_token=count_macs(model, length=length) // length,
            prefill_seconds=seconds,
            prefill_tokens_per_second={batch: batch * length / spread.median for batch, spread in seconds.items()},
            decode_seconds=decoded,
            decode_tokens_per_second=new_tokens / decoded.median if decoded else None,
            peak_memory_bytes=peaks[name],
        )
    first = next(iter(rows.values()))
    protocol = {
        "order": "in turns", "batches": list(batches), "length": length, "new_tokens": new_tokens,
        "prompt_tokens": PROMPT_TOKENS, "repeats": repeats, "seed": SEED, "device": str(device),
        "threads": torch.get_num_threads(), "torch": str(torch.__version__),
        "dtype": {name: str(model.dtype).removeprefix("torch.") for name, model in models.items()},
    }  # fmt: skip
    return Comparison(rows, {name: _ratios(first, row) for name, row in rows.items()}, protocol)
