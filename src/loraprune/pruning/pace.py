"""How fast a shape is beside the dense model: timed with random weights, or expected from its multiplications.

Knows nothing about targets.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median
from typing import TypeAlias

import torch
from transformers import PreTrainedModel

from loraprune.evaluation.benchmark.engines import DECODE, make_calls
from loraprune.evaluation.benchmark.macs import count_macs
from loraprune.evaluation.timing import time_in_turns
from loraprune.groups import Group
from loraprune.models.modes import evaluation_mode
from loraprune.pruning.allocation import Counts
from loraprune.pruning.surgery import slice_

NEW_TOKENS = 32
"""tokens that timed decoding writes"""
REPEATS = 5
"""samples of each model; the speed-up is the median of those taken next to each other in time"""


@dataclass(frozen=True, slots=True)
class Pace:
    """The speed of a shape beside the dense model's."""

    speedup: float
    dense_seconds: float | None = None
    """median of a call; None where nothing was timed"""
    pruned_seconds: float | None = None


Measure: TypeAlias = Callable[[Counts], Pace]
"""units that every group keeps -> how fast the model is then"""


def shaped(model: PreTrainedModel, groups: Sequence[Group], counts: Counts) -> PreTrainedModel:
    """Return a copy of a model with so many units of its groups: the first ones, as time does not depend on which."""
    smaller = copy.deepcopy(model)
    with model.device:
        slice_(smaller, groups, {name: range(count) for name, count in counts.items()})
    return smaller


def timed_pace(
    dense: PreTrainedModel, start: PreTrainedModel, groups: Sequence[Group], *, phase: str, tokens: int
) -> Measure:
    """Return a function that times shapes of `start` in turns with `dense`, on their device and in their precision, one sequence at a time.

    Args:
        dense: The model before anything is removed.
        start: The model that is cut; another one than `dense` where that has more tokens in its vocabulary.
        groups: Groups of `start` that lose units.
        phase: `prefill`, a forward pass over `tokens` tokens with all logits, or `decoding`, a greedy generation of 32 tokens.
        tokens: Length of the prefill.
    """

    def measure(counts: Counts) -> Pace:
        models = {"dense": dense, "pruned": shaped(start, groups, counts)}
        calls = make_calls(models, {}, batches=[1], length=tokens, new_tokens=NEW_TOKENS)
        with ExitStack() as modes:
            for model in models.values():
                modes.enter_context(evaluation_mode(model))
            times = time_in_turns(calls[DECODE if phase == "decoding" else 1], repeats=REPEATS, device=dense.device)
        pairs = zip(times["dense"].samples, times["pruned"].samples, strict=True)
        return Pace(median(slow / fast for slow, fast in pairs), times["dense"].median, times["pruned"].median)

    return measure


def expected_pace(
    dense: PreTrainedModel, start: PreTrainedModel, groups: Sequence[Group], *, phase: str, tokens: int
) -> Measure:
    """Return a function that counts the multiplications of shapes on the meta device; arguments are those of `timed_pace`.

    Decoding reads every weight for every token, and a weight is multiplied once: its expected time is that of the multiplications of a
    single token.
    """
    length = 1 if phase == "decoding" else tokens
    for parameter in (*dense.parameters(), *start.parameters()):
        parameter.data = parameter.data.to(torch.bfloat16)  # the only precision of experts on the meta device
    whole = count_macs(dense, length=length)
    return lambda counts: Pace(whole / count_macs(shaped(start, groups, counts), length=length))
