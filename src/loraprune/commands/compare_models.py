"""The command `compare-models`: compare several models in one table and one plot.

All models are in memory at the same time, so that they can be timed in turns.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loraprune.config.commands import CompareModelsConfig
from loraprune.errors import ConfigError, UnsupportedModelError
from loraprune.evaluation.benchmark import compare_speed
from loraprune.evaluation.measurement import PERPLEXITY
from loraprune.evaluation.tasks import Request, choose_task, same_task
from loraprune.families import fitting_lengths
from loraprune.models.loading import load_with_head
from loraprune.models.opening import resolve
from loraprune.preflight import check_evaluated
from loraprune.reporting.amounts import call_time, size
from loraprune.reporting.plotting import (
    GRID,
    MARKERS,
    PALETTE,
    MissingMatplotlib,
    new_figure,
    plain_frame,
    save,
    styled,
)
from loraprune.runtime.atomic import replace_text
from loraprune.runtime.device import choose_dtype

COLUMNS = ("model", "parameters", "MACs a token", "file", PERPLEXITY, "prefill", "tokens a second", "faster")
"""columns of the table; the fifth is named after the task's metric"""
NOTE = "Faster: prefill of the first model over this one's, timed in turns. Perplexities compare only between equal tokenizers."

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Lineup:
    """Size, speed and quality by model name, as JSON values."""

    values: Mapping[str, Any]


def compare_models(options: CompareModelsConfig) -> Lineup:
    """Measure all models; with an output folder, write table.md, results.json and a plot.

    Raises:
        LoraPruneError: for anything wrong with models or data; then nothing is written.
    """
    trust, texts = options.trust_remote_code, [options.data] if options.data else []
    device, configs = check_evaluated(
        "compare-models", options.models, texts, device=options.device, columns=options.roles(), trust_remote_code=trust
    )
    dtype = choose_dtype(options.dtype, device, configs[options.models[0]].dtype)
    task = same_task(
        {
            name: choose_task(config, None, data=options.data, columns=options.roles())
            for name, config in configs.items()
        }
    )
    if task.unit != "tokens":
        raise UnsupportedModelError(
            f"compare-models: models for {task.name} cannot be timed, only text models can; compare two of them with "
            "`loraprune evaluate --against`"
        )
    (length,) = fitting_lengths([options.length], configs.values())
    data = {
        name: task.prepare(
            Request(name, config, None, options.data, length, trust_remote_code=trust, columns=options.roles())
        )
        for name, config in configs.items()
        if options.data
    }
    models = {
        name: load_with_head(name, task.head, device=device, dtype=dtype, trust_remote_code=trust)[0]
        for name in configs
    }
    found = {name: task.evaluate(models[name], prepared, options.batch) for name, prepared in data.items()}
    metric = next(iter(found.values())).metric if found else PERPLEXITY
    speed = compare_speed(
        models, batches=(1,), length=length, new_tokens=options.tokens, repeats=options.repeats,
        folders={name: Path(resolve(name)) for name in models if Path(resolve(name)).is_dir()},
    )  # fmt: skip
    values = {
        "format": 1, "names": list(models), "task": task.name, "data": options.data, "metric": metric,
        metric: {name: measured.to_json() for name, measured in found.items()}, "speed": speed.to_json(),
    }  # fmt: skip
    if options.output is not None:
        _write(values, Path(options.output))
    return Lineup(values)


def _write(values: Mapping[str, Any], output: Path) -> None:
    """Write results.json and table.md, each completely or not at all, and the plot if matplotlib is installed."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        for name, text in (("results.json", json.dumps(values, indent=1) + "\n"), ("table.md", markdown(values))):
            replace_text(output / name, text)
    except OSError as error:
        raise ConfigError(f"--output {output}: cannot be written ({error.strerror}); choose another folder") from None
    try:
        with styled():
            save(plot(values), output / "plots", "models")
    except MissingMatplotlib as error:
        logger.warning("%s", error)


def columns(values: Mapping[str, Any]) -> list[str]:
    """Return the column headings."""
    return [values["metric"].replace("_", " ") if name == PERPLEXITY else name for name in COLUMNS]


def rows(values: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the cells of the table as text."""
    found: list[tuple[str, ...]] = []
    metric = values["metric"]
    for name in values["names"]:
        row, ratios = values["speed"]["rows"][name], values["speed"]["ratios"][name]
        measured = values[metric].get(name)
        rate = row["decode_tokens_per_second"]
        found.append((
            name, f"{row['parameters']:,}", f"{row['macs_per_token']:,}", size(row["file_bytes"]),
            f"{measured[metric]:.3f}" if measured else "-", call_time(row["prefill_seconds"]["1"]["median"]),
            f"{rate:.0f}" if rate else "-", f"{ratios['prefill_speedup']['1']:.2f}x",
        ))  # fmt: skip
    return found


def markdown(values: Mapping[str, Any]) -> str:
    """Return the text of a table.md."""
    lines = [f"| {' | '.join(columns(values))} |", "|---" + "|--:" * (len(COLUMNS) - 1) + "|"]
    lines += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows(values)]
    return "\n".join([*lines, "", NOTE]) + "\n"


def plot(values: Mapping[str, Any]) -> Any:
    """Draw quality over parameters, or prefill time over parameters if quality was not measured."""
    metric = values["metric"]
    figure = new_figure(7.0, 4.2)
    axes = figure.subplots()
    heights: Sequence[float] = (
        [values[metric][name][metric] for name in values["names"]]
        if values[metric]
        else [1e3 * values["speed"]["rows"][name]["prefill_seconds"]["1"]["median"] for name in values["names"]]
    )
    for place, (name, height) in enumerate(zip(values["names"], heights, strict=True)):
        x = values["speed"]["rows"][name]["parameters"] / 1e6
        colour, marker = PALETTE[place % len(PALETTE)], MARKERS[place % len(MARKERS)]
        axes.plot(x, height, marker, color=colour, markersize=9, label=shortened(name), markeredgecolor=GRID)
    axes.set_xlabel("parameters, millions")
    axes.set_ylabel(metric.replace("_", " ") if values[metric] else "prefill, milliseconds")
    axes.margins(0.15)
    plain_frame(axes)
    figure.legend(loc="outside right center", frameon=False)
    return figure


def shortened(name: str) -> str:
    """Return the end of a long name, with a space before an underscore, which would hide it from the legend."""
    words = name if len(name) <= 36 else f"…{name[-35:]}"
    return f" {words}" if words.startswith("_") else words
