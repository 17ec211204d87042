"""Figures of a run's removal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict


class Units(TypedDict):
    """The units of one group."""

    kind: NotRequired[str]
    """the group's kind, such as `attention`; missing in reports of the first versions"""
    dense: int
    kept: int


@dataclass(frozen=True, slots=True)
class Zeros:
    """Single weights that were set to zero, as counted in the saved files."""

    pattern: str
    ratio_requested: float
    ratio_reached: float
    zeros: int
    weights: int


@dataclass(frozen=True, slots=True)
class Removed:
    """The removed share of the prunable parameters."""

    ratio_requested: float | None
    """None where a number of parameters or widths were asked for, which `target` has"""
    ratio_reached: float
    prunable_dense: int
    prunable_pruned: int
    target: Mapping[str, Any] | None = None
    units: Mapping[str, Units] | None = None
    """group -> its units; None where single weights were zeroed"""
    recovery: Sequence[Mapping[str, Any]] = ()
    """loss before and after every removal, and what recovery gained"""
    sparsity: Zeros | None = None
