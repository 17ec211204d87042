"""The page itself: figures in words, plots inline, everything else in the template. Autoescaped, as names and texts are anyone's.

The only file that fills templates.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from loraprune.evaluation.measurement import PERPLEXITY, Compared
from loraprune.reporting.amounts import NEW_HEAD, UNTRAINED, change, duration, milliseconds, short, size
from loraprune.reporting.html import figures
from loraprune.reporting.html.folder import Run, read_run
from loraprune.reporting.html.labels import Plot, metric_of
from loraprune.reporting.plotting import MissingMatplotlib, inline_svg, save, styled
from loraprune.reporting.report import Report
from loraprune.runtime.atomic import replace_text

NAME = "report.html"
WITHOUT = f"{NAME} was not written: pip install 'loraprune[report]' adds what draws it"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Card:
    """One answer at the top of the page."""

    question: str
    answer: str
    """a few large letters"""
    lines: Sequence[str]


def write_page(folder: Path) -> None:
    """Write report.html into a run's folder; what goes wrong is said in one line, as the model is worth more than its page."""
    try:
        text = render(read_run(folder))
    except MissingMatplotlib:
        logger.warning(WITHOUT)
    except Exception as error:  # hours of training must not be lost to a plot
        logger.warning("%s was not written: %s: %s", NAME, type(error).__name__, " ".join(str(error).split()))
    else:
        replace_text(folder / NAME, text)


def write_plots(run: Run, folder: Path) -> list[str]:
    """Write the plots of the page as PNG and SVG, and return their names.

    Raises:
        MissingMatplotlib: if it is not installed.
    """
    names = []
    with styled():
        for plot in _plots(run):
            plot.figure.suptitle(plot.title, fontsize=11, x=0.02, ha="left")
            save(plot.figure, folder, plot.name)
            names.append(plot.name)
    return names


def render(run: Run) -> str:
    """Return the page of a run as HTML.

    Raises:
        MissingMatplotlib: if the extra is not installed.
    """
    with styled():
        drawn = {plot.name: (plot, inline_svg(plot.figure)) for plot in _plots(run)}
    environment = Environment(
        loader=FileSystemLoader(str(files("loraprune.reporting.html"))), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    report, evaluation = run.report, run.evaluation
    return environment.get_template("report.html.j2").render(
        report=report, title=f"{ending(report.model, 1)}, {_word(report)}", word=_word(report), cards=list(cards(report)),
        facts=list(facts(report)), plots=drawn, examples=report.shown.examples or [], tasks=evaluation.get("tasks"),
        task_rows=list(task_rows(evaluation)), windows=list(windows(evaluation)), heads=heads(evaluation),
        names=evaluation.get("names", []), recipe=run.recipe, metric=metric_of(report),
        protocol=report.quality.protocol,
        command=f"loraprune {report.job} --config run.yaml --output another/folder",
    )  # fmt: skip


def _plots(run: Run) -> Iterator[Plot]:
    yield from figures.all_plots(run)
    found = run.evaluation.get("tasks")
    if found:
        caption = "Accuracy with one standard error to either side."
        yield Plot("tasks", "Tasks", caption, figures.tasks(found["rows"], list(run.evaluation["names"])))


def _word(report: Report) -> str:
    return "pruned" if report.job == "prune" else "tuned"


def cards(report: Report) -> Iterator[Card]:
    """Yield how much smaller, faster and worse the model is."""
    before, after = report.parameters
    lines = [f"{short(before)} → {short(after)} parameters"]
    smaller = change(before, after).lstrip("-")
    if report.removed and report.removed.sparsity:
        smaller = f"{100 * report.removed.ratio_reached:.1f} %"
        lines = ["of the prunable weights are zero; shapes stay", *lines]
    elif report.removed:
        lines.append(f"ratio {report.removed.ratio_reached:.4f} of the prunable ones")
    speed = report.shown.speed
    if speed:
        dense, pruned = speed["rows"].values()
        if dense["file_bytes"] and pruned["file_bytes"]:
            lines.append(f"{size(dense['file_bytes'])} → {size(pruned['file_bytes'])} file")
    yield Card("How much smaller?", smaller, lines)
    if speed:
        yield _faster(speed)
    if report.has_new_head:
        yield _first_head(metric_of(report), report.quality)
        return
    is_perplexity = report.metric == PERPLEXITY
    yield _perplexity(report.quality) if is_perplexity else _score(metric_of(report), report.quality)


def _first_head(name: str, found: Compared) -> Card:
    """Return how good a model is whose head was new: there is nothing to compare it with."""
    return Card("How good?", f"{found.pruned:.3f}", [f"{found.dense:.3f} {name} with an {UNTRAINED}", NEW_HEAD])


def _perplexity(found: Compared) -> Card:
    lines = [f"{found.dense:.2f} → {found.pruned:.2f} perplexity"]
    errors, loss = found.standard_error, found.others.get("nll", {})
    if errors["dense"] is not None and errors["pruned"] is not None:
        lines.append(f"loss {loss['dense']:.3f} ± {errors['dense']:.3f} → "
                     f"{loss['pruned']:.3f} ± {errors['pruned']:.3f}")  # fmt: skip
    lines.append(f"{found.counts['tokens']:,} held-out tokens")
    times = found.pruned / found.dense
    return Card("How much worse?" if times >= 1 else "How much better?", f"{times:.2f}×", lines)


def _score(name: str, found: Compared) -> Card:
    """Return how far a figure that is to be high, and 1 at best, has moved."""
    errors = found.standard_error
    dense, pruned = (
        f"{value:.3f}" + (f" ± {errors[which]:.3f}" if errors[which] is not None else "")
        for which, value in (("dense", found.dense), ("pruned", found.pruned))
    )
    moved = found.pruned - found.dense
    lines = [f"{dense} → {pruned} {name}", f"{found.counts['rows']:,} held-out rows"]
    return Card("How much better?" if moved > 0 else "How much worse?", f"{abs(moved):.3f}", lines)


def _faster(speed: Mapping[str, Any]) -> Card:
    dense, pruned = speed["rows"].values()
    last = list(speed["ratios"].values())[-1]
    batch = next(iter(last["prefill_speedup"]))
    before, after = (row["prefill_seconds"][batch]["median"] for row in (dense, pruned))
    lines = [f"prefill: {milliseconds(before)} → {milliseconds(after)}"]
    if last["decode_speedup"]:
        rates = f"{dense['decode_tokens_per_second']:.0f} → {pruned['decode_tokens_per_second']:.0f} tokens/s"
        lines.append(f"generation: {last['decode_speedup']:.2f}×, {rates}")
    lines.append(f"the MACs promise {last['expected_speedup']:.2f}×")
    return Card("How much faster?", f"{last['prefill_speedup'][batch]:.2f}×", lines)


def facts(report: Report) -> Iterator[tuple[str, str]]:
    """Yield name and value of what else there is to know about a run."""
    if removed := report.removed:
        asked = removed.ratio_requested
        words = f" (asked {asked:g})" if asked is not None else ""
        yield "ratio reached", f"{removed.ratio_reached:.4f}{words}"
        yield "prunable parameters", f"{removed.prunable_dense:,} → {removed.prunable_pruned:,}"
    training, check = report.training, report.verification
    kept = training.kept_step
    yield "optimiser steps", f"{training.steps:,}" + (f", step {kept} kept" if kept is not None else "")
    yield "training", duration(training.seconds)
    yield "everything", duration(report.total_seconds)
    yield "peak memory of the training", size(training.peak_memory_bytes)
    yield "seed", str(report.seed)
    if check.failed:
        yield "not verified", "; ".join(check.failed)
    yield (
        "masked = sliced = reloaded",
        f"differences {check.masked_vs_sliced:.1e} and {check.sliced_vs_reloaded:.1e}, {check.tolerance:.0e} allowed",
    )
    yield "loads with", report.load


def heads(evaluation: Mapping[str, Any]) -> list[str]:
    """Return what models are called above a column: the last part of their names where that tells them apart."""
    names = evaluation.get("names", [])
    found = [ending(name, 1) for name in names]
    return found if len(set(found)) == len(names) else list(names)


def ending(name: str, words: int) -> str:
    """Return the last parts of a path."""
    return "/".join(Path(name).parts[-words:])


def windows(evaluation: Mapping[str, Any]) -> Iterator[list[str]]:
    """Yield data, window, metric and what every model measured there, for everything that `evaluate` recorded."""
    for entry in evaluation.get("measurements", []):
        metric = entry["metric"]
        cells = [f"{measured[metric]:.3f}" for measured in entry["models"].values()]
        yield [ending(entry["data"], 2), f"{entry['length']:,}", metric.replace("_", " "), *cells]


def task_rows(evaluation: Mapping[str, Any]) -> Iterator[list[str]]:
    """Yield task, metric, rows, accuracy of every model and their difference, in per cent."""
    for row in evaluation.get("tasks", {}).get("rows", []):
        cells = [percent(row["models"][name]) for name in evaluation["names"]]
        if row["difference"]:
            cells.append(percent(row["difference"], sign="+"))
        yield [row["task"], row["metric"], f"{row['documents']:,}", *cells]


def percent(figure: Mapping[str, float | None], *, sign: str = "") -> str:
    """Write a fraction and its standard error in per cent."""
    value, error = figure["value"], figure["standard_error"]
    assert value is not None
    return f"{100 * value:{sign}.2f}" + (f" ± {100 * error:.2f}" if error is not None else "")
