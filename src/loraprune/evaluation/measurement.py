"""The quality of a model: one figure with its name, further figures, and the protocol.

Knows nothing about how anything is measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

PERPLEXITY = "perplexity"
BITS, DENSITY = "bits_per_byte", "tokens_per_byte"
"""figures beside a perplexity, see `loraprune.evaluation.per_byte`"""


@dataclass(frozen=True, slots=True)
class Measured:
    """The main figure of an evaluation, and how it was measured."""

    metric: str
    """perplexity, accuracy, f1, ..."""
    value: float
    better: Literal["lower", "higher"]
    standard_error: float | None
    """of `value`, or for a perplexity of its logarithm; None for a single row"""
    counts: Mapping[str, int]
    """what it was measured on: {"tokens": ...} predicted, or {"rows": ...}"""
    protocol: Mapping[str, object]
    others: Mapping[str, float] = field(default_factory=dict)
    """figures measured beside it"""
    by_row: Sequence[tuple[float, int]] = ()
    """for every row a sum and a count, where the value (of a perplexity its logarithm) is the ratio of both over all rows"""

    @property
    def loss(self) -> float:
        """Return the value as a loss: lower is better."""
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


@dataclass(frozen=True, slots=True)
class Compared:
    """The same measurement before and after."""

    dense: float
    pruned: float
    standard_error: Mapping[str, float | None]
    """`dense` and `pruned`"""
    counts: Mapping[str, int]
    protocol: Mapping[str, object]
    others: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """what was measured beside it -> `dense` and `pruned`"""

    @classmethod
    def of(cls, dense: Measured, pruned: Measured) -> Compared:
        """Compare two measurements by the same protocol."""
        others = {name: {"dense": dense.others[name], "pruned": value} for name, value in pruned.others.items()}
        errors = {"dense": dense.standard_error, "pruned": pruned.standard_error}
        return cls(dense.value, pruned.value, errors, pruned.counts, pruned.protocol, others)

    def with_dense(self, first: Compared) -> Compared:
        """Return this measurement together with the dense model's of another one."""
        others = {name: {**pair, "dense": first.others[name]["dense"]} for name, pair in self.others.items()}
        errors = {**self.standard_error, "dense": first.standard_error["dense"]}
        return replace(self, dense=first.dense, standard_error=errors, others=others)

    def to_json(self) -> dict[str, Any]:
        """Return the entry of a report."""
        return {
            "dense": self.dense, "pruned": self.pruned, **self.others, "standard_error": dict(self.standard_error),
            **self.counts, "protocol": dict(self.protocol),
        }  # fmt: skip

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Compared:
        """Return the comparison that an entry of a report holds."""
        named = ("dense", "pruned", "standard_error", "protocol")
        rest = {name: value for name, value in values.items() if name not in named}
        others = {name: value for name, value in rest.items() if isinstance(value, Mapping)}
        counts = {name: value for name, value in rest.items() if name not in others}
        return cls(values["dense"], values["pruned"], values["standard_error"], counts, values["protocol"], others)


def loss_of(metric: str, value: float) -> float:
    """Return a figure as a loss: the logarithm of a perplexity, the negative of any other."""
    return math.log(value) if metric == PERPLEXITY else -value


def relative_drop(metric: str, reference: float, value: float) -> float:
    """Return the fraction of quality that a model loses: by how much a perplexity is above the reference, any other figure below it."""
    return value / reference - 1 if metric == PERPLEXITY else 1 - value / reference


def paired_difference(first: Measured, second: Measured) -> dict[str, float | None] | None:
    """Return the difference of `second` and `first`, paired by row; for perplexities, in nats a token.

    None for figures without rows, or with different rows.
    """
    counts = [count for _, count in second.by_row]
    if not counts or counts != [count for _, count in first.by_row]:
        return None
    sums = [b - a for (a, _), (b, _) in zip(first.by_row, second.by_row, strict=True)]
    return {"value": math.fsum(sums) / sum(counts), "standard_error": ratio_error(sums, counts)}


def ratio_error(sums: Sequence[float], counts: Sequence[int]) -> float | None:
    """Return the standard error of sum(sums) / sum(counts) when rows, not tokens, are the independent draws.

    Source: Cochran, Sampling Techniques, 3rd ed., on ratio estimators: the variance of a ratio estimate.
    """
    pairs = [(total, count) for total, count in zip(sums, counts, strict=True) if count]
    if len(pairs) < 2:
        return None
    mean = math.fsum(sums) / sum(counts)
    spread = math.fsum((total - mean * count) ** 2 for total, count in pairs)
    return math.sqrt(spread * len(pairs) / (len(pairs) - 1)) / sum(counts)
