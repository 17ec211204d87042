"""Fill the template of report.html. Everything is escaped, as names and texts may come from anyone.

The only file that fills templates.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from loraprune.evaluation.measurement import BITS, DENSITY
from loraprune.reporting.html import figures
from loraprune.reporting.html.folder import Run, read_run
from loraprune.reporting.html.labels import Plot, metric_of
from loraprune.reporting.html.summary import cards, facts, origin, tone
from loraprune.reporting.plotting import MissingMatplotlib, inline_svg, save, styled
from loraprune.reporting.report import Report
from loraprune.runtime.atomic import replace_text

NAME = "report.html"
WITHOUT = f"{NAME} was not written: install what draws it with pip install 'loraprune[report]'"

logger = logging.getLogger(__name__)


def write_page(folder: Path) -> None:
    """Write report.html into a run's folder; a failure costs the page and a line in the log, never the model."""
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
    report, evaluation, texts = run.report, run.evaluation, passages(run.report)
    return environment.get_template("report.html.j2").render(
        report=report, title=f"{ending(report.model, 1)}, {_word(report)}", word=_word(report), origin=origin(report), tone=tone(report),
        cards=list(cards(report)),
        facts=list(facts(report)), plots=drawn, examples=texts, is_code=is_code(texts), tasks=evaluation.get("tasks"),
        task_rows=list(task_rows(evaluation)), windows=list(windows(evaluation)), heads=heads(evaluation),
        names=evaluation.get("names", []), recipe=run.recipe, metric=metric_of(report),
        protocol=report.quality.protocol,
        command=f"loraprune {report.job} --config run.yaml --output another/folder",
    )  # fmt: skip


def _plots(run: Run) -> Iterator[Plot]:
    yield from figures.all_plots(run)
    found = run.evaluation.get("tasks")
    if found:
        caption = "Accuracy, with bars of one standard error."
        yield Plot("tasks", "Tasks", caption, figures.tasks(found["rows"], list(run.evaluation["names"])))


def _word(report: Report) -> str:
    return "pruned" if report.job == "prune" else "fine-tuned"


def passages(report: Report) -> list[dict[str, str]]:
    """Return prompts and completions without surrounding white space."""
    return [{name: text.strip("\r\n").rstrip() for name, text in each.items()} for each in report.shown.examples or []]


def is_code(texts: Sequence[Mapping[str, str]]) -> bool:
    """Return whether texts have indented lines, which only a fixed-width font shows as they are."""
    lines = (line for each in texts for text in each.values() for line in text.splitlines())
    return any(line.startswith(("    ", "\t")) for line in lines)


def heads(evaluation: Mapping[str, Any]) -> list[str]:
    """Return the heads of the models' columns: the last part of their names where these differ."""
    names = evaluation.get("names", [])
    found = [ending(name, 1) for name in names]
    return found if len(set(found)) == len(names) else list(names)


def ending(name: str, words: int) -> str:
    """Return the last parts of a path."""
    return "/".join(Path(name).parts[-words:])


def windows(evaluation: Mapping[str, Any]) -> Iterator[list[str]]:
    """Yield data, window, metric and the figure of every model for each measurement that `evaluate` recorded."""
    for entry in evaluation.get("measurements", []):
        metric, models = entry["metric"], entry["models"].values()
        cells = [f"{measured[metric]:.3f}" for measured in models]
        if (
            len({measured.get(DENSITY) for measured in models}) > 1
        ):  # other tokens, so that perplexities cannot be compared
            cells = [
                f"{cell}, {measured[BITS]:.4f} bits a byte" if BITS in measured else cell
                for cell, measured in zip(cells, models, strict=True)
            ]
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
