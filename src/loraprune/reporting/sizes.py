"""Several sizes from one run (`--sizes`): the files sizes.json and table.md about all of them, and the plot.

OUTPUT/sizes.json, table.md, plots/sizes.png   about all sizes
OUTPUT/90/, OUTPUT/80/, ...                    the folder of each, with its own report.json
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from loraprune.config.sizes import in_percent
from loraprune.evaluation.measurement import loss_of
from loraprune.reporting.amounts import change
from loraprune.reporting.knee import RULE, Advice, Point, advise, unit_of
from loraprune.reporting.plotting import INK, MissingMatplotlib, lines, new_figure, ring, save, styled

NAME = "sizes.json"
TABLE = "table.md"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Size:
    """One size of a run."""

    size: float
    """fraction of the dense model's parameters that was asked for"""
    folder: str
    """its name in the output folder"""
    parameters: int
    ratio_reached: float
    """fraction of the prunable parameters that is removed"""
    value: float
    """the metric on the held-out rows"""
    standard_error: float | None
    """as in report.json"""
    verdict: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """All sizes of a run."""

    model: str
    data: str
    metric: str
    dense_parameters: int
    dense: float
    """the metric of the dense model, which is not tuned"""
    steps: int
    """optimiser steps of all sizes together"""
    total_seconds: float
    sizes: Sequence[Size]
    """largest first; each was trained for as many steps as those before it and its own share"""
    knee: str | None
    """such as 80%; None where the curve has none"""
    recommended: str | None
    """None if no size is usable"""
    reason: str

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Sizes:
        """Return what sizes.json holds."""
        known = {name: value for name, value in values.items() if name != "format"}
        return cls(**{**known, "sizes": tuple(Size(**each) for each in values["sizes"])})

    def marks(self, one: Size) -> list[str]:
        """Return what a size is on the curve, such as the knee."""
        marked = (("knee", self.knee), ("recommended", self.recommended))
        return [word for word, name in marked if name == in_percent(one.size)]

    def rows(self) -> list[tuple[str, ...]]:
        """Return the rows of the table, the dense model first."""
        found: list[tuple[str, ...]] = [("dense", f"{self.dense_parameters:,}", "", f"{self.dense:.4f}", "", "")]
        for one in self.sizes:
            marks = f" ({', '.join(self.marks(one))})" if self.marks(one) else ""
            found.append((
                in_percent(one.size) + marks, f"{one.parameters:,}", f"{100 * one.ratio_reached:.1f} %",
                f"{one.value:.4f}", change(self.dense, one.value), one.verdict,
            ))  # fmt: skip
        return found

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the headings of the table."""
        return ("size", "parameters", "removed of prunable", self.metric.replace("_", " "), "change", "verdict")

    @property
    def outcome(self) -> str:
        """Return in one clause which size is recommended, and why."""
        return self.reason if self.recommended is None else f"{self.recommended}: {self.reason}"


def advice_on(metric: str, sizes: Sequence[Size], *, start: tuple[float, float] | None) -> Advice:
    """Return where the curve of some sizes bends; `start` has parameters and metric of the dense model, if it is a part of the curve."""
    points = [
        Point(in_percent(one.size), one.parameters, loss_of(metric, one.value), one.verdict == "usable")
        for one in sizes
    ]
    return advise(points, start=start and (start[0], loss_of(metric, start[1])), unit=unit_of(metric))


def write_sizes(folder: Path, found: Sizes) -> None:
    """Write sizes.json, table.md and, if matplotlib is there, the plot."""
    text = json.dumps({"format": 1, **asdict(found)}, indent=1, allow_nan=False)
    (folder / NAME).write_text(text + "\n", encoding="utf-8")
    head = [f"**{found.model}** on {found.data}", "", f"| {' | '.join(found.columns)} |", "|---" + "|--:" * 4 + "|---|"]
    body = [f"| {' | '.join(row)} |" for row in found.rows()]
    (folder / TABLE).write_text(
        "\n".join([*head, *body, "", f"Recommended: {found.outcome}.", "", RULE, ""]), encoding="utf-8"
    )
    try:
        draw_sizes(folder / "plots", found)
    except MissingMatplotlib as error:
        logger.warning("%s", error)


def draw_sizes(folder: Path, found: Sizes) -> None:
    """Draw the metric against the parameters, with the knee and the recommended size named.

    Raises:
        MissingMatplotlib: if it is not installed.
    """
    with styled():
        figure = new_figure(7.5, 4.5)
        axes, name = figure.subplots(), found.metric.replace("_", " ")
        axes.plot(found.dense_parameters / 1e6, found.dense, "*", color=INK, markersize=14, label="dense", zorder=9)
        lines({"pruned": [(one.parameters / 1e6, one.value, 0.0) for one in found.sizes]}, axes)
        for one in found.sizes:
            point = one.parameters / 1e6, one.value
            axes.annotate(
                in_percent(one.size),
                point,
                (0, 7),
                textcoords="offset points",
                ha="center",
                va="bottom",
                fontsize=8,
                color=INK,
            )
            if marks := found.marks(one):
                ring(axes, point, ", ".join(marks))
        axes.margins(0.12)
        axes.set_xlabel("parameters of the whole model, millions")
        axes.set_ylabel(name)
        note = "" if found.knee else "; the curve has no knee"
        axes.set_title(f"{name[0].upper()}{name[1:]} by size{note}", fontsize=10.5, loc="left")
        axes.legend(frameon=False)
        save(figure, folder, "sizes")
