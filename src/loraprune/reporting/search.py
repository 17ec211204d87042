"""The entry `search` of a report: the runs that --max-drop tried, and why one of them was kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loraprune.pruning.removed import Units


@dataclass(frozen=True, slots=True)
class Try:
    """One run of a search."""

    ratio: float
    """as it was asked for"""
    ratio_reached: float
    """as the shape has it"""
    parameters: int
    """of the whole model"""
    shape: Mapping[str, int | Sequence[int]]
    """kind of units -> how many every group keeps, or one number for each group where they differ"""
    value: float
    """the metric on the held-out rows that choose"""
    drop: float
    """fraction of quality lost on these rows, relative to the reference; below 0 for a gain"""
    holds: bool
    """whether that is within the limit"""


def shape_of(units: Mapping[str, Units]) -> dict[str, int | Sequence[int]]:
    """Return the shape that the groups of a report have, see `Try.shape`."""
    kept: dict[str, list[int]] = {}
    for group in units.values():
        kept.setdefault(group["kind"], []).append(group["kept"])
    return {kind: counts[0] if len(set(counts)) == 1 else counts for kind, counts in kept.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """A finished search."""

    max_drop: float
    """the limit"""
    tuned: bool
    """whether the reference is the dense model tuned with the same options, and not the dense model itself"""
    reference_of_choice: float
    """metric of the reference on the rows that choose"""
    reference: float
    """metric of the reference on the other held-out rows, which the report's figures are measured on"""
    tries: Sequence[Try]
    """by ratio"""
    ratio: float
    """the one that was kept"""
    drop: float
    """fraction of quality that it loses on the other rows"""
    apart: bool
    """whether there are other rows; a single held-out row is used for both"""
    reason: str
    """why this one"""

    @property
    def reference_name(self) -> str:
        """Return what losses are relative to."""
        return "the dense model" + (" tuned with the same options" if self.tuned else "")

    @property
    def outcome(self) -> str:
        """Return in one clause what was lost on the rows that chose no run."""
        rows = "held-out rows that chose no run" if self.apart else "the one held-out row, which also chose the run"
        over = "" if self.drop <= self.max_drop else f", which is above the limit of {100 * self.max_drop:g} %"
        return f"it loses {100 * self.drop:.2f} % against {self.reference_name} on {rows}{over}"

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Search:
        """Return the search that an entry of a report holds."""
        return cls(**{**values, "tries": tuple(Try(**each) for each in values["tries"])})


def why(tries: Sequence[Try], chosen: Try, rungs: Sequence[float], *, reference: str) -> str:
    """Return why a try was kept: what the next larger cut loses.

    Args:
        tries: All runs of the search.
        chosen: The one that is kept.
        rungs: The ratios that give different shapes, smallest first.
        reference: What the losses are relative to.
    """
    cost = f"ratio {chosen.ratio:g} loses {100 * chosen.drop:.2f} % against {reference}"
    larger = min((one for one in tries if one.ratio > chosen.ratio), key=lambda one: one.ratio, default=None)
    above = [ratio for ratio in rungs if ratio > chosen.ratio]
    if not above:
        return f"{cost}; it is the largest cut that the shapes of this model allow"
    if larger is None:
        return f"{cost}; no larger cut was tried: give more --tries"
    lost = f"{cost}; ratio {larger.ratio:g} loses {100 * larger.drop:.2f} %"
    between = sum(ratio < larger.ratio for ratio in above)
    return f"{lost} ({between} ratios between the two were not tried: give more --tries)" if between else lost
