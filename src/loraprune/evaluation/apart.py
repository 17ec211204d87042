"""Held-out rows in two halves: one half chooses between several runs, and a report's figures are measured on the other.

Otherwise the figures of the run that looked best would be too good. Knows nothing about runs.
"""

from __future__ import annotations

import random
from dataclasses import replace

from transformers import PreTrainedModel

from loraprune.evaluation.measurement import Measured
from loraprune.evaluation.tasks import Prepared, Task

CHOICE = "on_rows_of_choice"
"""the figure on the rows that choose, beside the one on the others"""
APART = "apart_from_choice"
"""entry of a protocol: whether the figures are on other rows than those that choose, which takes two"""


def with_rows_apart(task: Task, *, seed: int) -> Task:
    """Return a task that measures one half of the held-out rows, and beside it, as `CHOICE`, its main figure on the other half."""

    def evaluate(model: PreTrainedModel, prepared: Prepared, batch: int) -> Measured:
        rows = prepared.held_out
        choosing, others = halves(len(rows), seed=seed)
        choice = task.evaluate(model, replace(prepared, held_out=rows.take(choosing)), batch)
        found = task.evaluate(model, replace(prepared, held_out=rows.take(others)), batch)
        return replace(
            found, others={**found.others, CHOICE: choice.value}, protocol={**found.protocol, APART: choosing != others}
        )

    return replace(task, evaluate=evaluate)


def halves(count: int, *, seed: int) -> tuple[list[int], list[int]]:
    """Return the places of the rows that choose, drawn at random, and of the others; a single row is both."""
    if count < 2:
        return list(range(count)), list(range(count))
    choosing = set(random.Random(seed).sample(range(count), count // 2))
    return sorted(choosing), [place for place in range(count) if place not in choosing]
