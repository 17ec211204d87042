"""Plots of a comparison, as PNG and SVG.

Knows nothing about how anything was measured.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from loraprune.commands.compare.correlation import agreements, spearman
from loraprune.commands.compare.grid import SEED, recipe_name
from loraprune.commands.compare.summary import metric_of
from loraprune.evaluation.measurement import PERPLEXITY
from loraprune.reporting.plotting import lines, new_figure, plain_ticks, save, styled

TARGETS = ("ratio", "parameters", "heads", "ffn")
"""options that set how much is removed; they are the x axis of a line"""
LOGARITHMIC_FROM = 3
"""ratio of the largest to the smallest perplexity above which an axis is logarithmic"""
PAIRS_AT_MOST = 21
STEPS_AT_MOST = 12
"""maximum rows of a heat map over steps; more steps are sampled evenly"""
NUMBERS_AT_MOST = 16
"""maximum columns of a heat map with numbers in its cells"""


def draw(values: Mapping[str, Any], cells: Path, folder: Path) -> None:
    """Draw every plot that the cells of a comparison have data for.

    Raises:
        MissingMatplotlib: if it is not installed.
    """
    done = [entry for entry in values["cells"] if "error" not in entry]
    pruned = [entry for entry in done if entry["job"] == "prune"]
    with styled():
        if done:
            perplexity(values["recipes"], done, folder)
        if pruned:
            widths(pruned, folder)
            agreement(pruned, cells, folder)
            agreement_by_step(pruned, values["reference"], cells, folder)


def perplexity(recipes: Mapping[str, Any], done: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Draw quality over parameters, with one line for recipes that differ only in the target."""
    metric = metric_of(done)
    series: dict[str, list[tuple[float, float, float]]] = {}
    for entry in done:
        series.setdefault("dense", [(entry["parameters"]["dense"] / 1e6, entry[metric]["dense"], 0.0)])
    for values in recipes.values():
        if not values.get(metric):
            continue
        point = values["parameters"] / 1e6, values[metric]["mean"], values[metric]["deviation"] or 0.0
        series.setdefault(_without_target(values["labels"]), []).append(point)
    figure = new_figure(7.5, 4.5)
    axes = figure.subplots()
    lines(series, axes)
    heights = [y for points in series.values() for _, y, _ in points]
    is_wide = metric == PERPLEXITY and max(heights) > LOGARITHMIC_FROM * min(heights)
    if is_wide:
        axes.set_yscale("log")
        plain_ticks(axes.yaxis)
    axes.set_xlabel("parameters of the whole model, millions")
    axes.set_ylabel(metric.replace("_", " ") + (" (logarithmic)" if is_wide else ""))
    axes.set_title("Mean and sample deviation over seeds", fontsize=11, loc="left")
    figure.legend(loc="outside right center", frameon=False)
    save(figure, folder, metric)


def widths(pruned: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Draw the share of heads and channels that each recipe keeps in each layer."""
    shares: dict[str, dict[str, dict[int, list[float]]]] = {}
    for entry in pruned:
        for group, units in entry["units"].items():
            layer, part = place_of(group)
            row = shares.setdefault(part, {}).setdefault(entry["recipe"], {})
            row.setdefault(layer, []).append(100 * units["kept"] / units["dense"])
    panels = {
        f"units of {part} kept, %": {name: _means(layers) for name, layers in rows.items()}
        for part, rows in shares.items()
    }
    heat_maps(panels, folder, "widths", limits=(0.0, 100.0), colours="cividis", digits=0)


def agreement(pruned: Sequence[Mapping[str, Any]], cells: Path, folder: Path) -> None:
    """Draw how much the unit scores of every two recipes agree in each layer, at the smallest removal.

    Units that are gone keep the last score they had, so that less removed is more to compare.
    """
    scores: dict[str, dict[int, Mapping[str, Any]]] = {}
    for entry in sorted(pruned, key=lambda one: one["ratio_reached"]):
        path = cells / entry["key"] / "scores.safetensors"
        by_seed = scores.setdefault(_without_target(entry["labels"]), {})
        if path.is_file() and entry["seed"] not in by_seed:
            by_seed[entry["seed"]] = load_file(path)
    panels: dict[str, dict[str, dict[int, float]]] = {}
    for one, other in list(combinations(scores, 2))[:PAIRS_AT_MOST]:
        found: dict[str, dict[int, list[float]]] = {}
        for seed in scores[one].keys() & scores[other].keys():
            for group in scores[one][seed].keys() & scores[other][seed].keys():
                value = spearman(scores[one][seed][group].tolist(), scores[other][seed][group].tolist())
                layer, part = place_of(group)
                if value is not None:
                    found.setdefault(part, {}).setdefault(layer, []).append(value)
        for part, layers in found.items():
            panels.setdefault(f"rank correlation of scores, {part}", {})[f"{one} / {other}"] = _means(layers)
    if panels:
        heat_maps(panels, folder, "agreement", limits=(-1.0, 1.0), colours="PuOr_r", digits=2)


def agreement_by_step(pruned: Sequence[Mapping[str, Any]], reference: str | None, cells: Path, folder: Path) -> None:
    """Draw how much the scores of every recipe agree with the reference's at the same step, by layer and step.

    Only runs with --history true have something to draw; of several targets the smallest removal is taken.
    """
    runs: dict[tuple[str, int], tuple[bool, dict[str, list[float]]]] = {}
    for entry in sorted(pruned, key=lambda one: one["ratio_reached"]):
        path, name = cells / entry["key"] / "scores_history.safetensors", _without_target(entry["labels"])
        if path.is_file() and (name, entry["seed"]) not in runs:
            scores = {key: values.tolist() for key, values in load_file(path).items()}
            runs[name, entry["seed"]] = reference in entry["labels"].values(), scores
    panels: dict[str, dict[str, dict[int, list[float]]]] = {}
    for label, steps in agreements(runs):
        for step in [*steps][:: -(-len(steps) // STEPS_AT_MOST)]:
            for group, value in steps[step].items():
                layer, part = place_of(group)
                rows = panels.setdefault(f"{label}: rank correlation of scores, {part}", {})
                rows.setdefault(f"step {step}", {}).setdefault(layer, []).append(value)
    drawn = {title: {row: _means(layers) for row, layers in rows.items()} for title, rows in panels.items()}
    if drawn:
        heat_maps(drawn, folder, "agreement_by_step", limits=(-1.0, 1.0), colours="PuOr_r", digits=2)


def heat_maps(
    panels: Mapping[str, Mapping[str, Mapping[int, float]]],
    folder: Path,
    name: str,
    *,
    limits: tuple[float, float],
    colours: str,
    digits: int,
) -> None:
    """Draw title -> row -> column -> value as one heat map per title, below each other."""
    columns = sorted({layer for rows in panels.values() for row in rows.values() for layer in row})
    heights = [len(rows) for rows in panels.values()]
    longest = max(len(row) for rows in panels.values() for row in rows)
    numbers = len(columns) <= NUMBERS_AT_MOST
    each = 0.62 if numbers else 0.25
    figure = new_figure(2.2 + 0.085 * longest + each * max(len(columns), 5), 0.34 * sum(heights) + 1.1 * len(panels))
    all_axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (title, rows) in zip(all_axes, sorted(panels.items()), strict=True):
        table = [[row.get(column, float("nan")) for column in columns] for row in rows.values()]
        image = axes.imshow(table, vmin=limits[0], vmax=limits[1], cmap=colours, aspect="auto")
        axes.set_yticks(range(len(rows)), rows)
        every = 1 if numbers else max(1, len(columns) // 12)
        axes.set_xticks(range(0, len(columns), every), columns[::every])
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


def place_of(group: str) -> tuple[int, str]:
    """Return the layer and the part of a group's path, such as 3 and self_attn."""
    number = re.search(r"\.(\d+)\.", group)
    return int(number[1]) if number else 0, group.rpartition(".")[2]


def _without_target(labels: Mapping[str, str]) -> str:
    """Return the name of a recipe without the amount that it removes."""
    return recipe_name({axis: words for axis, words in labels.items() if axis not in (*TARGETS, SEED)}) or "pruned"


def _means(layers: Mapping[int, Sequence[float]]) -> dict[int, float]:
    return {layer: sum(values) / len(values) for layer, values in layers.items()}
