"""Time several calls fairly: in turns, each long enough for the clock."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import torch

SECONDS_AT_LEAST = 0.05
"""a timed stretch repeats its call until it lasts this long, so that the resolution of clock and scheduler is negligible"""
LOOPS_AT_MOST = 10_000

Call = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Spread:
    """Seconds a call: median and extremes, and the samples in the order taken."""

    median: float
    minimum: float
    maximum: float
    samples: tuple[float, ...]


def time_in_turns(calls: Mapping[str, Call], *, repeats: int, device: torch.device) -> dict[str, Spread]:
    """Time calls in the order A B A B ..., after a warm-up of each, so that drifts of the machine affect all of them alike."""
    for call in calls.values():
        call()
    loops = _loops(list(calls.values()), device) if calls else 1
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            samples[name].append(_stretch(call, loops, device=device) / loops)
    return {name: Spread(median(s), min(s), max(s), tuple(s)) for name, s in samples.items()}


def _loops(calls: Sequence[Call], device: torch.device) -> int:
    """Return how often a stretch repeats its call, the same for all: until the fastest lasts long enough."""
    loops, fastest = 1, 0.0
    while fastest < SECONDS_AT_LEAST and loops < LOOPS_AT_MOST:
        fastest = min(_stretch(call, loops, device=device) for call in calls)
        if fastest < SECONDS_AT_LEAST:
            growth = min(100.0, 1.2 * SECONDS_AT_LEAST / max(fastest, 1e-9))
            loops = min(LOOPS_AT_MOST, math.ceil(loops * growth))
    return loops


def _stretch(call: Call, loops: int, *, device: torch.device) -> float:
    _synchronise(device)
    began = perf_counter()
    for _ in range(loops):
        call()
    _synchronise(device)
    return perf_counter() - began


def _synchronise(device: torch.device) -> None:
    """Wait for the work queued on an accelerator, which a call only submits."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
