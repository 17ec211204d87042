"""Perplexities of models with different vocabularies in the same unit: by the bytes of the text, not by each model's own tokens.

Knows nothing about runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from loraprune.data import TextRows
from loraprune.errors import ConfigError
from loraprune.evaluation.measurement import BITS, DENSITY, PERPLEXITY, Measured
from loraprune.evaluation.tasks import Prepared, Task
from loraprune.models.vocabulary import byte_lengths


def with_bits_per_byte(task: Task, data: Prepared) -> Task:
    """Return a task that measures bits per byte beside a perplexity, where the bytes of the held-out text can be counted."""
    found = density(data)
    return in_units_of(task, found, found)


def density(data: Prepared) -> float | None:
    """Return the tokens per byte of the held-out targets; None without text, or for a tokenizer whose bytes cannot be counted."""
    rows, tokenizer = data.held_out, data.processor
    if not isinstance(rows, TextRows) or not isinstance(tokenizer, PreTrainedTokenizerBase):
        return None
    try:
        lengths = byte_lengths(tokenizer)
    except ConfigError:
        return None
    return tokens_per_byte(rows.targets(), lengths)


def tokens_per_byte(targets: Iterable[Sequence[int]], lengths: Mapping[int, int]) -> float | None:
    """Return how many targets a byte of text has; `lengths` is token -> bytes. None where there is no text to predict."""
    tokens = size = 0
    for row in targets:
        tokens += len(row)
        size += sum(lengths.get(token, 0) for token in row)
    return tokens / size if size else None


def in_units_of(task: Task, own: float | None, reference: float | None) -> Task:
    """Return a task whose perplexity is per token of a reference tokenizer, and which measures bits per byte beside it.

    `own` and `reference` are the tokens per byte of the held-out text by the evaluated model's and by the reference tokenizer. Other
    metrics, and a text without bytes, are measured as before.
    """
    if not own or not reference:
        return task

    def evaluate(model: PreTrainedModel, prepared: Prepared, batch: int) -> Measured:
        return converted(task.evaluate(model, prepared, batch), own=own, reference=reference)

    return replace(task, evaluate=evaluate)


def converted(found: Measured, *, own: float, reference: float) -> Measured:
    """Return a perplexity per token of the reference tokenizer, with its bits per byte; other figures unchanged."""
    if found.metric != PERPLEXITY:
        return found
    scale = own / reference
    nll = math.log(found.value) * scale
    error = None if found.standard_error is None else found.standard_error * scale
    return replace(
        found, value=math.exp(nll), standard_error=error,
        others={**found.others, "nll": nll, BITS: nll * reference / math.log(2), DENSITY: own},
        by_row=tuple((total * scale, count) for total, count in found.by_row),
    )  # fmt: skip
