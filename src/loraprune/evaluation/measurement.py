"""How good a model is: one figure with its name, what was measured beside it, and how.

Knows nothing about how anything is measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

PERPLEXITY = "perplexity"


@dataclass(frozen=True, slots=True)
class Measured:
    """The figure by which a model is judged, and how it came about."""

    metric: str
    """perplexity, accuracy, f1, ..."""
    value: float
    better: Literal["lower", "higher"]
    standard_error: float | None
    """of `value`, except for a perplexity, where it is of its logarithm; None where one draw has no spread"""
    counts: Mapping[str, int]
    """what it was measured on: {"tokens": ...} predicted, or {"rows": ...}"""
    protocol: Mapping[str, object]
    others: Mapping[str, float] = field(default_factory=dict)
    """figures measured beside it"""
    by_row: Sequence[tuple[float, int]] = ()
    """for every row a sum and a count, where the value (of a perplexity its logarithm) is the ratio of both over all rows"""

    @property
    def loss(self) -> float:
        """Return the value as something that is to be low."""
        return loss_of(self.metric, self.value)

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        return {
            self.metric: self.value,
            **self.others,
            "standard_error": self.standard_error,
            **self.counts,
            "protocol": dict(self.protocol),
        }


def compared(dense: Measured, pruned: Measured) -> dict[str, Any]:
    """Return the entry of a report about the same measurement before and after."""
    return {
        "dense": dense.value,
        "pruned": pruned.value,
        **{name: {"dense": dense.others[name], "pruned": value} for name, value in pruned.others.items()},
        "standard_error": {"dense": dense.standard_error, "pruned": pruned.standard_error},
        **pruned.counts,
        "protocol": dict(pruned.protocol),
    }


def loss_of(metric: str, value: float) -> float:
    """Return a figure as something that is to be low: the logarithm of a perplexity, the negative of any other."""
    return math.log(value) if metric == PERPLEXITY else -value


def paired_difference(first: Measured, second: Measured) -> dict[str, float | None] | None:
    """Return how much `second` is above `first`, paired by row; of perplexities, in nats a token.

    None for figures that are not made of rows, or not of the same ones.
    """
    counts = [count for _, count in second.by_row]
    if not counts or counts != [count for _, count in first.by_row]:
        return None
    sums = [b - a for (a, _), (b, _) in zip(first.by_row, second.by_row, strict=True)]
    return {"value": math.fsum(sums) / sum(counts), "standard_error": ratio_error(sums, counts)}


def ratio_error(sums: Sequence[float], counts: Sequence[int]) -> float | None:
    """Return the standard error of sum(sums) / sum(counts) when rows, not tokens, are the independent draws.

    Source: Cochran, Sampling Techniques, 3rd ed., equation 6.13: variance of a ratio estimate.
    """
    pairs = [(total, count) for total, count in zip(sums, counts, strict=True) if count]
    if len(pairs) < 2:
        return None
    mean = math.fsum(sums) / sum(counts)
    spread = math.fsum((total - mean * count) ** 2 for total, count in pairs)
    return math.sqrt(spread * len(pairs) / (len(pairs) - 1)) / sum(counts)
