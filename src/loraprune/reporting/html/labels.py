"""Sizes, colours and labels of all plots of the page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from loraprune.reporting.plotting import PALE, PALETTE
from loraprune.reporting.report import Report

WIDTH = 4.7
"""inches: at this width a 9-point letter is as large on a phone as the text around it"""
HEIGHT = 3.1
"""inches: the same for all plots but tall heat maps, so that neighbours end at the same line"""
DENSE, PRUNED, OTHER = PALE, PALETTE[0], PALETTE[1]
ROWS_LABELLED = 16
LABEL_AT_MOST = 16
"""characters"""
HEADS = " A head is a key-value head with the query heads that share it."


@dataclass(frozen=True, slots=True)
class Plot:
    """One plot of the page."""

    name: str
    title: str
    caption: str
    figure: Any


def metric_of(report: Report) -> str:
    """Return the name of the metric by which the models of a run are evaluated."""
    return report.metric.replace("_", " ")


def pass_of(speed: Mapping[str, Any]) -> str:
    """Return what a timed forward pass is called: a model that does not generate has no prefill."""
    dense, pruned = speed["rows"].values()
    return "prefill" if dense["decode_seconds"] and pruned["decode_seconds"] else "forward pass"


def file_name(kind: str, units: str) -> str:
    """Return the name of a plot about units, such as `kept-ffn-channels`."""
    return f"{kind}-{units.lower().replace(' ', '-')}"


def brief(label: str) -> str:
    """Cut a label that would leave no room for the plot."""
    return label if len(label) <= LABEL_AT_MOST else f"{label[: LABEL_AT_MOST - 1]}…"
