"""Plots of a comparison, as PNG and SVG.

Knows nothing about how anything was measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from loraprune.commands.compare.advice import without_target
from loraprune.commands.compare.correlation import agreements
from loraprune.commands.compare.summary import metric_of
from loraprune.evaluation.measurement import PERPLEXITY
from loraprune.pruning.correlation import spearman
from loraprune.reporting.knee import MARKS
from loraprune.reporting.layers import rows_by_units
from loraprune.reporting.plotting import INK, lines, new_figure, plain_ticks, ring, save, styled

LOGARITHMIC_FROM = 3
"""largest over smallest perplexity above which the axis is logarithmic"""
PAIRS_AT_MOST = 21
STEPS_AT_MOST = 12
"""rows of a heat map over steps; of more steps, this many are drawn, evenly spread"""
NUMBERS_AT_MOST = 16
"""columns of a heat map up to which its cells have room for a number"""


def draw(values: Mapping[str, Any], cells: Path, folder: Path) -> None:
    """Draw every plot for which the cells of a comparison have data.

    Raises:
        MissingMatplotlib: if it is not installed.
    """
    done = [entry for entry in values["cells"] if "error" not in entry]
    pruned = [entry for entry in done if entry.get("units")]
    with styled():
        if done:
            perplexity(values["recipes"], done, folder, values["recommendations"])
        if pruned:
            widths(pruned, folder)
            agreement(pruned, cells, folder)
            agreement_by_step(pruned, values["reference"], cells, folder)


def perplexity(
    recipes: Mapping[str, Any],
    done: Sequence[Mapping[str, Any]],
    folder: Path,
    recommendations: Mapping[str, Mapping[str, Any]],
) -> None:
    """Draw the metric against the size of the model: a line for recipes that differ only in the target, from the dense model on.

    On every line the knee and the recommended size are marked, as far as there are any.
    """
    metric = metric_of(done)
    start = done[0]["parameters"]["dense"] / 1e6, done[0][metric]["dense"], 0.0
    series: dict[str, list[tuple[float, float, float]]] = {}
    ratios: dict[str, tuple[float, float]] = {}
    for values in recipes.values():
        if not values.get(metric):
            continue
        point = values["parameters"] / 1e6, values[metric]["mean"], values[metric]["deviation"] or 0.0
        is_pruned = values["job"] == "prune"
        series.setdefault(without_target(values["labels"]), [start] if is_pruned else []).append(point)
        if is_pruned:
            ratio = f"{100 * values['ratio_reached']:.0f} %"
            ratios[ratio] = max(ratios.get(ratio, point[:2]), (point[0], point[1] + point[2]), key=lambda top: top[1])
    figure = new_figure(7.5, 4.5)
    axes = figure.subplots()
    # Every line starts here, so its marker lies over theirs.
    axes.plot(*start[:2], "*", color=INK, markersize=14, label="dense", zorder=9)
    lines(series, axes)
    _name_ratios(axes, ratios)
    for name, marks in _marked(recommendations).items():
        ring(axes, (recipes[name]["parameters"] / 1e6, recipes[name][metric]["mean"]), ", ".join(marks))
    heights = [start[1], *(y for points in series.values() for _, y, _ in points)]
    is_wide = metric == PERPLEXITY and max(heights) > LOGARITHMIC_FROM * min(heights)
    if is_wide:
        axes.set_yscale("log")
        plain_ticks(axes.yaxis)
    name = metric.replace("_", " ")
    axes.margins(y=0.12)
    axes.set_xlabel("parameters of the whole model, millions")
    axes.set_ylabel(name + (" (logarithmic)" if is_wide else ""))
    note = "mean over seeds with sample deviation; percentages: prunable parameters removed"
    axes.set_title(f"{name[0].upper()}{name[1:]} of pruned models by size:\n{note}", fontsize=10.5, loc="left")
    figure.legend(loc="outside right center", frameon=False)
    save(figure, folder, metric)


def _marked(recommendations: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return recipe -> what it is on its curve, such as the knee."""
    found: dict[str, list[str]] = {}
    for each in recommendations.values():
        for mark in MARKS:
            if each[mark]:
                found.setdefault(each[mark], []).append(mark)
    return found


def _name_ratios(axes: Any, ratios: Mapping[str, tuple[float, float]]) -> None:
    """Write every ratio once, above the highest of its points."""
    for ratio, top in ratios.items():
        axes.annotate(ratio, top, (0, 7), textcoords="offset points", ha="center", va="bottom", fontsize=8, color=INK)


def widths(pruned: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Draw the share of each layer's heads, channels or other units that every recipe keeps."""
    shares: dict[str, dict[str, dict[str, list[float]]]] = {}
    for group, (name, layer) in places(pruned).items():
        for entry in (one for one in pruned if group in one["units"]):
            units = entry["units"][group]
            row = shares.setdefault(name, {}).setdefault(entry["recipe"], {})
            row.setdefault(layer, []).append(100 * units["kept"] / units["dense"])
    panels = {f"{name} kept, %": {recipe: _means(row) for recipe, row in rows.items()} for name, rows in shares.items()}
    heat_maps(panels, folder, "widths", limits=(0.0, 100.0), colours="cividis", digits=0)


def agreement(pruned: Sequence[Mapping[str, Any]], cells: Path, folder: Path) -> None:
    """Draw the rank correlation of the unit scores of every two recipes in each layer, at the smallest removal.

    Removed units keep the last score they had, so the smallest removal leaves most to compare.
    """
    scores: dict[str, dict[int, Mapping[str, Any]]] = {}
    for entry in sorted(pruned, key=lambda one: one["ratio_reached"]):
        path = cells / entry["key"] / "scores.safetensors"
        by_seed = scores.setdefault(without_target(entry["labels"]), {})
        if path.is_file() and entry["seed"] not in by_seed:
            by_seed[entry["seed"]] = load_file(path)
    panels: dict[str, dict[str, dict[str, float]]] = {}
    for one, other in list(combinations(scores, 2))[:PAIRS_AT_MOST]:
        found: dict[str, dict[str, list[float]]] = {}
        for group, (name, layer) in places(pruned).items():
            for seed in scores[one].keys() & scores[other].keys():
                left, right = (scores[recipe][seed].get(group) for recipe in (one, other))
                value = spearman(left.tolist(), right.tolist()) if left is not None and right is not None else None
                if value is not None:
                    found.setdefault(name, {}).setdefault(layer, []).append(value)
        for name, layers in found.items():
            panels.setdefault(f"rank correlation of scores, {name}", {})[f"{one} / {other}"] = _means(layers)
    if panels:
        heat_maps(panels, folder, "agreement", limits=(-1.0, 1.0), colours="PuOr_r", digits=2)


def agreement_by_step(pruned: Sequence[Mapping[str, Any]], reference: str | None, cells: Path, folder: Path) -> None:
    """Draw the rank correlation of every recipe's scores with the reference's at the same step, by layer and step.

    Only runs with --history true have scores of earlier steps; of several targets the smallest removal is drawn.
    """
    runs: dict[tuple[str, int], tuple[bool, dict[str, list[float]]]] = {}
    for entry in sorted(pruned, key=lambda one: one["ratio_reached"]):
        path, recipe = cells / entry["key"] / "scores_history.safetensors", without_target(entry["labels"])
        if path.is_file() and (recipe, entry["seed"]) not in runs:
            scores = {key: values.tolist() for key, values in load_file(path).items()}
            runs[recipe, entry["seed"]] = reference in entry["labels"].values(), scores
    where = places(pruned)
    panels: dict[str, dict[str, dict[str, list[float]]]] = {}
    for label, steps in agreements(runs):
        for step in [*steps][:: -(-len(steps) // STEPS_AT_MOST)]:
            for group in (one for one in where if one in steps[step]):
                name, layer = where[group]
                rows = panels.setdefault(f"{label}: rank correlation of scores, {name}", {})
                rows.setdefault(f"step {step}", {}).setdefault(layer, []).append(steps[step][group])
    drawn = {title: {row: _means(layers) for row, layers in rows.items()} for title, rows in panels.items()}
    if drawn:
        heat_maps(drawn, folder, "agreement_by_step", limits=(-1.0, 1.0), colours="PuOr_r", digits=2)


def heat_maps(
    panels: Mapping[str, Mapping[str, Mapping[str, float]]],
    folder: Path,
    name: str,
    *,
    limits: tuple[float, float],
    colours: str,
    digits: int,
) -> None:
    """Draw title -> row -> column -> value as one heat map a title, one below the other."""
    columns = {
        title: list(dict.fromkeys(layer for row in rows.values() for layer in row)) for title, rows in panels.items()
    }
    most = max(map(len, columns.values()))
    heights = [len(rows) for rows in panels.values()]
    longest = max(len(row) for rows in panels.values() for row in rows)
    numbers = most <= NUMBERS_AT_MOST
    each = 0.62 if numbers else 0.25
    figure = new_figure(2.2 + 0.085 * longest + each * max(most, 5), 0.34 * sum(heights) + 1.1 * len(panels))
    all_axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (title, rows) in zip(all_axes, sorted(panels.items()), strict=True):
        layers = columns[title]
        table = [[row.get(layer, float("nan")) for layer in layers] for row in rows.values()]
        image = axes.imshow(table, vmin=limits[0], vmax=limits[1], cmap=colours, aspect="auto")
        axes.set_yticks(range(len(rows)), rows)
        every = 1 if numbers else max(1, len(layers) // 12)
        axes.set_xticks(range(0, len(layers), every), layers[::every])
        axes.set_xlabel("layer")
        axes.set_title(title, fontsize=11, loc="left")
        if numbers:
            _write_numbers(axes, image, table, digits)
        figure.colorbar(image, ax=axes, pad=0.02)
    save(figure, folder, name)


def _write_numbers(axes: Any, image: Any, table: Sequence[Sequence[float]], digits: int) -> None:
    """Write each value on its cell, white on dark colours and black on light ones."""
    for y, row in enumerate(table):
        for x, value in enumerate(row):
            if value == value:
                red, green, blue, _ = image.cmap(image.norm(value))
                dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
                axes.text(x, y, f"{value:.{digits}f}", ha="center", va="center", fontsize=8, color="w" if dark else "k")


def places(pruned: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, str]]:
    """Return group -> what its units are called and the label of its layer, for all groups of these runs of one model."""
    units = {group: counts for entry in pruned for group, counts in entry["units"].items()}
    return {group: (name, layer) for name, rows in rows_by_units(units).items() for layer, group in rows.items()}


def _means(layers: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {layer: sum(values) / len(values) for layer, values in layers.items()}
