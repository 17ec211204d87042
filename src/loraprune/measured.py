"""How good a model is: one figure with its name, what was measured beside it, and how.

Knows nothing about how anything is measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


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
