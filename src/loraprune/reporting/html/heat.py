"""The scores of all units as heat maps, a row a layer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from loraprune.reporting.html.folder import Run, parts
from loraprune.reporting.html.labels import OTHER, ROWS_LABELLED, WIDTH, Plot, brief, named
from loraprune.reporting.plotting import new_figure

HEAT_COLUMNS = 96
"""units beyond this many share cells of a heat map"""
UNSORTED_AT_MOST = 32
"""units that are shown in the model's own order; more are sorted, as a thousand places mean nothing to the eye"""


def heat_maps(run: Run) -> Iterator[Plot]:
    """Draw the scores of all units, a row a layer."""
    for part, rows in parts(list(run.scores)).items():
        tables = [list(map(_log, run.scores[group])) for group in rows.values()]
        most = max(map(len, tables))
        is_sorted = most > UNSORTED_AT_MOST
        figure = new_figure(WIDTH, min(5.0, 1.3 + 0.17 * len(rows)))
        axes = figure.subplots()
        table = [_cells(sorted(row, reverse=True) if is_sorted else row, most) for row in tables]
        image = axes.imshow(
            table, cmap="cividis", aspect="auto", interpolation="nearest", extent=(0, most, len(rows), 0)
        )
        for place, group in enumerate(rows.values()):
            _mark(axes, run.kept.get(group), len(run.scores[group]), place, is_sorted=is_sorted)
        every = max(1, math.ceil(len(rows) / ROWS_LABELLED))
        axes.set_yticks(
            [place + 0.5 for place in range(0, len(rows), every)], [brief(label) for label in rows][::every], fontsize=9
        )
        axes.set_ylabel("layer")
        if not is_sorted:
            step = max(1, math.ceil(most / ROWS_LABELLED))
            axes.set_xticks([unit + 0.5 for unit in range(0, most, step)], range(0, most, step))
        axes.set_xlabel(f"{named(part)}, best first" if is_sorted else named(part))
        figure.colorbar(image, ax=axes, pad=0.02, label="log10 of the score")
        how = "a line marks how many are kept" if is_sorted else "crosses mark what was removed"
        caption = f"One row a layer; {how}. A removed unit keeps the last score it had, so compare the kept ones."
        yield Plot(f"scores-{part}", f"Scores of {named(part)}", caption, figure)


def _log(score: float) -> float:
    return math.log10(abs(score)) if score else math.nan


def _cells(row: Sequence[float], most: int) -> list[float]:
    """Return a row of at most HEAT_COLUMNS means, the same number for rows of any length up to `most`."""
    count = min(most, HEAT_COLUMNS)
    padded = [*row, *[math.nan] * (most - len(row))]
    slices = (padded[place * most // count : (place + 1) * most // count] for place in range(count))
    known = ([value for value in piece if value == value] for piece in slices)
    return [sum(piece) / len(piece) if piece else math.nan for piece in known]


def _mark(axes: Any, kept: Sequence[int] | None, units: int, place: int, *, is_sorted: bool) -> None:
    if kept is None or len(kept) == units:
        return
    if is_sorted:
        axes.plot([len(kept)] * 2, [place, place + 1], color=OTHER, linewidth=2.2, solid_capstyle="butt")
        return
    gone = sorted(set(range(units)) - set(kept))
    axes.plot(
        [unit + 0.5 for unit in gone], [place + 0.5] * len(gone), "x", color=OTHER, markersize=5, markeredgewidth=1.6
    )
