"""What all plots of the page share: their width, their colours, and how layers and units are called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from loraprune.reporting.plotting import PALETTE
from loraprune.reporting.report import Report

WIDTH = 4.7
"""inches: at this width an 9-point letter is as large on a phone as the text around it"""
DENSE, PRUNED, OTHER = PALETTE[4], PALETTE[0], PALETTE[1]
ROWS_LABELLED = 16
LABEL_AT_MOST = 16
"""characters"""
NAMES = {"self_attn": "heads", "mlp": "FFN channels"}
HEADS = " A head is a key-value head with the query heads that share it."


@dataclass(frozen=True, slots=True)
class Plot:
    """One plot of the page."""

    name: str
    title: str
    caption: str
    figure: Any


def metric_of(report: Report) -> str:
    """Return in words what the models of a run are judged by."""
    return report.metric.replace("_", " ")


def named(part: str) -> str:
    """Return what the units of a part of a layer are called."""
    return NAMES.get(part, f"units of {part}")


def brief(label: str) -> str:
    """Cut a label that would leave no room for the plot."""
    return label if len(label) <= LABEL_AT_MOST else f"{label[: LABEL_AT_MOST - 1]}…"
