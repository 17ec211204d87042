"""The plots of a run, small enough to be read on a phone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from loraprune.evaluation.measurement import PERPLEXITY
from loraprune.reporting.amounts import call_time, short, size
from loraprune.reporting.html.folder import Run, units_of
from loraprune.reporting.html.heat import heat_maps
from loraprune.reporting.html.labels import (
    DENSE,
    HEADS,
    HEIGHT,
    OTHER,
    PRUNED,
    ROWS_LABELLED,
    WIDTH,
    Plot,
    brief,
    file_name,
    metric_of,
    pass_of,
)
from loraprune.reporting.layers import rows_by_units
from loraprune.reporting.plotting import INK, new_figure, plain_frame, plain_ticks, whole_ticks
from loraprune.reporting.report import Report


def all_plots(run: Run) -> Iterator[Plot]:
    """Yield every plot that a run has data for; must be called within `plotting.styled`."""
    if speed := run.report.shown.speed:
        yield Plot("size-and-speed", "Size and speed", _speed_words(speed), size_and_speed(speed))
    if run.report.training.curve and run.report.training.steps:
        yield Plot("training", *_training_words(run.report), training(run.report))
    if run.report.training.evaluations:
        yield Plot(
            "held-out",
            f"Held-out {metric_of(run.report)} over steps",
            _held_out_words(run.report),
            held_out(run.report),
        )
    yield from widths(run)
    yield from heat_maps(run)


def training(report: Report) -> Any:
    """Draw the loss, and below it the ratio if there is one."""
    curve, removals = report.training.curve, report.training.removals
    figure = new_figure(WIDTH, HEIGHT)
    panels = figure.subplots(
        2 if removals else 1, 1, sharex=True, squeeze=False, height_ratios=[2, 1][: 1 + bool(removals)]
    )
    loss = panels[0, 0]
    loss.plot([p["step"] for p in curve], [p["loss"] for p in curve], color=PRUNED, linewidth=1.8)
    loss.set_ylabel("loss")
    panels[-1, 0].set_xlabel("optimiser step")
    whole_ticks(panels[-1, 0].xaxis)
    if removals:
        steps = [0, *(p["step"] for p in removals), max(report.training.steps, removals[-1]["step"])]
        ratios = [0.0, *(p["ratio"] for p in removals), removals[-1]["ratio"]]
        panels[1, 0].step(steps, ratios, where="post", color=OTHER, linewidth=1.8)
        panels[1, 0].set_ylabel("ratio")
        panels[1, 0].set_ylim(0, None)
    for axes in panels[:, 0]:
        plain_frame(axes)
    return figure


def _training_words(report: Report) -> tuple[str, str]:
    """Return title and caption."""
    if not report.training.removals:
        return "Loss over steps", "Training loss."
    return (
        "Loss and ratio over steps",
        "Training loss, and below it the fraction of the prunable parameters removed so far.",
    )


def held_out(report: Report) -> Any:
    """Draw the metric on held-out data from the dense model on."""
    metric, evaluations, kept = report.metric, report.training.evaluations, report.training.kept_step
    figure = new_figure(WIDTH, HEIGHT)
    axes = figure.subplots()
    points = [(0, report.quality.dense)] + [(e["step"], e[metric]) for e in evaluations]
    steps, values = zip(*points, strict=True)
    axes.plot(steps, values, color=PRUNED, marker="o", markersize=4.5, linewidth=1.8)
    if metric == PERPLEXITY and max(values) > 3 * min(values):
        axes.set_yscale("log")
        plain_ticks(axes.yaxis)
    for entry in evaluations:
        if entry["step"] == kept:
            axes.plot(
                entry["step"],
                entry[metric],
                "o",
                markersize=11,
                fillstyle="none",
                color=OTHER,
                markeredgewidth=1.8,
            )
    axes.set_xlabel("optimiser step")
    whole_ticks(axes.xaxis)
    axes.set_ylabel(metric_of(report))
    plain_frame(axes)
    return figure


def _held_out_words(report: Report) -> str:
    words = f"{metric_of(report).capitalize()} on held-out data while the model trains; step 0 is the dense model."
    return words if report.training.kept_step is None else f"{words} The circle marks the step whose weights were kept."


def widths(run: Run) -> Iterator[Plot]:
    """Draw how many heads, channels or other units each layer keeps, and how many it had."""
    units = units_of(run.report)
    for name, rows in rows_by_units(units).items():
        kept = [units[group]["kept"] for group in rows.values()]
        dense = [units[group]["dense"] for group in rows.values()]
        figure = new_figure(WIDTH, HEIGHT)
        axes = figure.subplots()
        places = range(len(rows))
        axes.bar(places, dense, color=DENSE, width=0.75, label="removed")
        axes.bar(places, kept, color=PRUNED, width=0.75, label="kept")
        if len(rows) <= ROWS_LABELLED:
            for place, count in zip(places, kept, strict=True):
                axes.annotate(f"{count:,}", (place, count), (0, 2), textcoords="offset points", ha="center", va="bottom",
                              color=INK, fontsize=8 if len(rows) <= 8 else 6.5)  # fmt: skip
        every = max(1, math.ceil(len(rows) / ROWS_LABELLED))
        axes.set_xticks(list(places)[::every], [brief(label) for label in rows][::every], fontsize=9)
        axes.set_xlabel("layer")
        whole_ticks(axes.yaxis)
        figure.legend(loc="outside upper right", ncols=2, frameon=False, fontsize=9)
        plain_frame(axes, grid="y")
        axes.margins(x=0.02, y=0.08)
        caption = f"{name[0].upper()}{name[1:]} of every layer before and after pruning."
        yield Plot(
            file_name("kept", name), f"Kept {name} by layer", caption + (HEADS if name == "heads" else ""), figure
        )


def size_and_speed(speed: Mapping[str, Any]) -> Any:
    """Draw the pruned model's sizes and times as percentages of the dense model's."""
    bars = list(_bars(speed))
    figure = new_figure(WIDTH, max(HEIGHT, 0.7 + 0.4 * len(bars)))
    axes = figure.subplots()
    for place, (_, dense, pruned, words) in enumerate(bars):
        share = 100 * pruned / dense
        axes.barh(place - 0.19, 100, height=0.36, color=DENSE, label="dense" if not place else None)
        axes.barh(place + 0.19, share, height=0.36, color=PRUNED, label="this model" if not place else None)
        axes.annotate(words(dense), (100, place - 0.19), (4, 0), textcoords="offset points", va="center", fontsize=9)
        axes.annotate(words(pruned), (share, place + 0.19), (4, 0), textcoords="offset points", va="center", fontsize=9)
    axes.set_yticks(range(len(bars)), [name for name, *_ in bars], fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.32 * max(100, *(100 * pruned / dense for _, dense, pruned, _ in bars)))
    axes.set_xlabel("% of the dense model")
    figure.legend(loc="outside upper right", ncols=2, frameon=False, fontsize=9)
    plain_frame(axes, grid="x")
    return figure


def _bars(speed: Mapping[str, Any]) -> Iterator[tuple[str, float, float, Callable[[float], str]]]:
    """Yield the name of a quantity, its value in both models, and the function that formats it."""
    dense, pruned = speed["rows"].values()
    yield "parameters", dense["parameters"], pruned["parameters"], short
    yield "MACs per token", dense["macs_per_token"], pruned["macs_per_token"], short
    if dense["file_bytes"] and pruned["file_bytes"]:
        yield "file", dense["file_bytes"], pruned["file_bytes"], size
    if dense["peak_memory_bytes"] and pruned["peak_memory_bytes"]:
        yield "peak memory", dense["peak_memory_bytes"], pruned["peak_memory_bytes"], size
    else:
        yield "weights in memory", dense["weight_bytes"], pruned["weight_bytes"], size
    for batch in dense["prefill_seconds"]:
        seconds = (row["prefill_seconds"][batch]["median"] for row in (dense, pruned))
        yield f"{pass_of(speed)}, batch {batch}", *seconds, call_time
    if dense["decode_seconds"] and pruned["decode_seconds"]:
        yield "generation", dense["decode_seconds"]["median"], pruned["decode_seconds"]["median"], call_time


def _speed_words(speed: Mapping[str, Any]) -> str:
    protocol = speed["protocol"]
    name = pass_of(speed)
    generation = f", generation of {protocol['new_tokens']}" if name == "prefill" else ""
    return (
        f"Shorter is better. Times are medians of {protocol['repeats']} runs on {protocol['device']}, first of one model and then "
        f"of the other: {name} of {protocol['length']} tokens{generation}. `loraprune benchmark` alternates between the models, "
        "which is more exact."
    )


def tasks(rows: Sequence[Mapping[str, Any]], models: Sequence[str]) -> Any:
    """Draw the accuracy of every model on every task with its standard error."""
    figure = new_figure(WIDTH, max(HEIGHT, 1.1 + 0.42 * len(rows)))
    axes = figure.subplots()
    colours = (DENSE, PRUNED) if len(models) > 1 else (PRUNED,)
    for offset, (name, colour) in enumerate(zip(models, colours, strict=True)):
        places = [place + 0.16 * (offset - (len(models) - 1) / 2) * 2 for place in range(len(rows))]
        values = [100 * row["models"][name]["value"] for row in rows]
        errors = [100 * (row["models"][name]["standard_error"] or 0) for row in rows]
        label = "this model" if offset == len(models) - 1 else "dense"
        axes.errorbar(values, places, xerr=errors, fmt="o", color=colour, capsize=3, label=label)
    axes.set_yticks(range(len(rows)), [brief(row["task"]) for row in rows], fontsize=9)
    axes.invert_yaxis()
    axes.set_xlabel("accuracy, %")
    axes.tick_params(colors=INK)
    figure.legend(loc="outside upper right", ncols=2, frameon=False, fontsize=9)
    plain_frame(axes)
    return figure
