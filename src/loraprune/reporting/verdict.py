"""Decide whether a finished run gave a usable model.

The thresholds are rules of thumb, chosen here from the tables in docs/results.md. They compare the result with the dense model
on the same held-out rows, and say nothing about other data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from loraprune.evaluation.measurement import PERPLEXITY

Word = Literal["usable", "train longer or cut less", "tune differently", "ruined", "not comparable"]

USABLE_GAP, RUINED_GAP = 0.25, 1.0
"""nats a token above the dense model's loss: usable up to the first (1.28 times the perplexity), ruined above the second (2.72 times)"""
USABLE_SHARE, RUINED_SHARE = 0.95, 0.75
"""share of the dense model's accuracy or other score that is kept: usable from the first on, ruined below the second"""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the model of a run is good enough to use, and why."""

    word: Word
    reason: str
    """one clause with the figures and the threshold that decided"""

    @property
    def is_good(self) -> bool:
        """Return whether nothing speaks against using the model."""
        return self.word == "usable"


def find_verdict(job: str, metric: str, dense: float, pruned: float, *, new_head: bool) -> Verdict:
    """Return the verdict on a model whose `metric` was `dense` before the run and is `pruned` after it.

    `job` is prune or finetune; a perplexity is good when low, every other metric when high. With `new_head` the dense figure is that
    of an untrained head, so that it shows a failure but no success.
    """
    name = metric.replace("_", " ")
    if new_head:
        return _against_new_head(
            name, dense, pruned, learned=pruned < dense if metric == PERPLEXITY else pruned > dense
        )
    if metric == PERPLEXITY:
        return _by_gap(job, name, dense, pruned)
    return _by_share(job, name, dense, pruned)


def _by_gap(job: str, name: str, dense: float, pruned: float) -> Verdict:
    """Compare two perplexities by the difference of their logarithms, in nats a token."""
    gap = math.log(pruned) - math.log(dense)
    figures = f"{name} {pruned:.4g}, {pruned / dense:.3g} times the dense model's {dense:.4g}"
    if gap > RUINED_GAP:
        return Verdict("ruined", f"{figures}; above {math.exp(RUINED_GAP):.2f} times a model is ruined")
    if gap > USABLE_GAP:
        return Verdict(_middle(job), f"{figures}; usable up to {math.exp(USABLE_GAP):.2f} times")
    return Verdict("usable", figures)


def _by_share(job: str, name: str, dense: float, pruned: float) -> Verdict:
    """Compare two scores that are 1 at best by the share that is kept."""
    if dense <= 0:
        return Verdict(
            "not comparable",
            f"{name} {pruned:.3f}; the dense model's {dense:.3f} is not positive, so no share of it can be kept",
        )
    share = pruned / dense
    figures = f"{name} {pruned:.3f}, {share:.1%} of the dense model's {dense:.3f}"
    if share < RUINED_SHARE:
        return Verdict("ruined", f"{figures}; below {RUINED_SHARE:.0%} a model is ruined")
    if share < USABLE_SHARE:
        return Verdict(_middle(job), f"{figures}; usable from {USABLE_SHARE:.0%} on")
    return Verdict("usable", figures)


def _against_new_head(name: str, dense: float, pruned: float, *, learned: bool) -> Verdict:
    figures = f"{name} {pruned:.4g} after {dense:.4g} with an untrained head"
    if not learned:
        return Verdict("ruined", f"{figures}: the model learned nothing in this run")
    return Verdict("not comparable", f"{figures}, which does not show what pruning cost")


def _middle(job: str) -> Word:
    """Return the word for a model that is neither usable nor ruined; plain fine-tuning has nothing to cut less of."""
    return "train longer or cut less" if job == "prune" else "tune differently"
