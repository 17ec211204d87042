"""The scores of all units as heat maps, a row a layer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from loraprune.reporting.html.folder import Run, units_of
from loraprune.reporting.html.labels import HEIGHT, OTHER, ROWS_LABELLED, WIDTH, Plot, brief, file_name
from loraprune.reporting.layers import rows_by_units
from loraprune.reporting.plotting import new_figure, whole_ticks

HEAT_COLUMNS = 96
"""units beyond this many share cells of a heat map"""
UNSORTED_AT_MOST = 32
"""units that are shown in the model's own order; more are sorted by score, as nobody can read a thousand columns"""


def heat_maps(run: Run) -> Iterator[Plot]:
    """Draw the scores of all units, a row a layer."""
    for units, groups in rows_by_units(units_of(run.report)).items():
        rows = {label: group for label, group in groups.items() if group in run.scores}
        if not rows:
            continue
        most = max(len(run.scores[group]) for group in rows.values())
        is_sorted = most > UNSORTED_AT_MOST
        figure = new_figure(WIDTH, min(5.0, max(HEIGHT, 1.3 + 0.17 * len(rows))))
        axes = figure.subplots()
        _draw(axes, run, rows, most=most, is_sorted=is_sorted)
        axes.set_ylabel("layer")
        axes.set_xlabel(f"{units}, highest score first" if is_sorted else units)
        figure.colorbar(axes.images[0], ax=axes, pad=0.02, label="score (log10)")
        how = "the line marks how many are kept" if is_sorted else "crosses mark removed units"
        caption = f"One row per layer; {how}. A removed unit keeps the last score it had, so compare only units that are kept."
        yield Plot(file_name("scores", units), f"Scores of {units}", caption, figure)


def _draw(axes: Any, run: Run, rows: Mapping[str, str], *, most: int, is_sorted: bool) -> None:
    """Draw a row for every group, with ticks at layers and units."""
    tables = [list(map(_log, run.scores[group])) for group in rows.values()]
    table = [_cells(sorted(row, reverse=True) if is_sorted else row, most) for row in tables]
    axes.imshow(table, cmap="cividis", aspect="auto", interpolation="nearest", extent=(0, most, len(rows), 0))
    for place, group in enumerate(rows.values()):
        _mark(axes, run.kept.get(group), len(run.scores[group]), place, is_sorted=is_sorted)
    every = max(1, math.ceil(len(rows) / ROWS_LABELLED))
    labels = [brief(label) for label in rows][::every]
    axes.set_yticks([place + 0.5 for place in range(0, len(rows), every)], labels, fontsize=9)
    if is_sorted:
        whole_ticks(axes.xaxis)
    else:
        step = max(1, math.ceil(most / ROWS_LABELLED))
        axes.set_xticks([unit + 0.5 for unit in range(0, most, step)], range(0, most, step))


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
    middles = [unit + 0.5 for unit in gone]
    # The white edge shows on dark, grey and yellow cells alike.
    axes.plot(
        middles, [place + 0.5] * len(gone), "X", color=OTHER, markersize=7, markeredgecolor="white", markeredgewidth=0.8
    )
