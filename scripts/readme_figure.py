"""Draw the figure of the README from the results of `benchmarks/real_models.py`, and print its command and table.

    python -m scripts.readme_figure [benchmarks/results/real_smollm2-135m.json]

The figure shows size against perplexity, a panel for each number of training steps. It is written to docs/figures as
real-model-light.svg and real-model-dark.svg. The README includes both:

    <picture>
      <source media="(prefers-color-scheme: dark)" srcset="docs/figures/real-model-dark.svg">
      <img alt="Size against perplexity of SmolLM2-135M by method" src="docs/figures/real-model-light.svg">
    </picture>
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.docs_figures import write

from loraprune.reporting.plotting import INK, lines, new_figure, plain_ticks, styled

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "real_smollm2-135m.json"
NAMES = {
    "recommended": "loraprune",
    "optipfair": "OptiPFair",
    "torch-pruning": "Torch-Pruning",
    "paper": "LoRAPrune as published",
}
"""method in the results -> its name in the figure; the dense model is a separate line"""
ROWS = ("dense", "recommended", "optipfair")
"""methods in the table of the README"""
Point = tuple[float, float, float]
"""parameters in millions, mean perplexity over seeds, its sample deviation"""


def chosen(cells: Sequence[Mapping[str, Any]], method: str, steps: int) -> list[Mapping[str, Any]]:
    """Return the cells of a method at a number of steps.

    Raises:
        SystemExit: if there is none, as a figure without a method would be a claim that was not measured.
    """
    found = [cell for cell in cells if (cell["method"], cell["steps"]) == (method, steps)]
    if not found:
        sys.exit(f"no cells of {method} at {steps} steps; run benchmarks/real_models.py with --methods {method}")
    return found


def points(cells: Sequence[Mapping[str, Any]], method: str, steps: int, text: str) -> list[Point]:
    """Return a point for each ratio of a method, the smallest model first."""
    found = chosen(cells, method, steps)
    series = []
    for ratio in {cell["ratio"] for cell in found}:
        same = [cell for cell in found if cell["ratio"] == ratio]
        values = [cell["perplexity"][text] for cell in same]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        series.append((statistics.mean(cell["parameters"] for cell in same) / 1e6, statistics.mean(values), spread))
    return sorted(series)


def picture(result: Mapping[str, Any]) -> Any:
    """Draw size against perplexity: a panel for each number of steps, a line for each method from the dense model on."""
    cells = result["cells"]
    text = first_text(cells)
    numbers = sorted({cell["steps"] for cell in cells})
    figure = new_figure(4.3 * len(numbers), 3.6)
    panels = figure.subplots(1, len(numbers), sharey=True, squeeze=False)[0]
    for axes, steps in zip(panels, numbers, strict=True):
        (start,) = points(cells, "dense", steps, text)
        size, dense, _ = start
        lines({name: [*points(cells, method, steps, text), start] for method, name in NAMES.items()}, axes)
        axes.axhline(dense, color=INK, linewidth=1.0, linestyle=":")
        axes.annotate(
            "dense", (size, dense), (0, 4), textcoords="offset points", ha="right", va="bottom", fontsize=9, color=INK
        )
        axes.plot(size, dense, color=INK, marker="*", markersize=12, linestyle="none", zorder=3)
        axes.set_yscale("log")
        plain_ticks(axes.yaxis)
        axes.set_title("no training" if steps == 0 else f"{steps} training steps", fontsize=10, loc="left")
        axes.set_xlabel("parameters (millions)")
    panels[0].set_ylabel(f"perplexity on {text}")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    return figure


def first_text(cells: Sequence[Mapping[str, Any]]) -> str:
    """Return the name of the text that the figure and the table are about."""
    return str(next(iter(cells[0]["perplexity"])))


def table(result: Mapping[str, Any], ratio: float) -> list[str]:
    """Return the table of the README: parameters and perplexity at a ratio, after the most steps that were run."""
    cells = result["cells"]
    text, steps = first_text(cells), max(cell["steps"] for cell in cells)
    rows = [f"| {text}, {steps} steps | parameters | perplexity |", "|---|---|---|"]
    for method in ROWS:
        found = [cell for cell in chosen(cells, method, steps) if method == "dense" or cell["ratio"] == ratio]
        ((size, mean, spread),) = points(found, method, steps, text)
        seeds = f" ± {spread:.2f}" if len(found) > 1 else ""
        rows.append(f"| {NAMES.get(method, method)} | {size:.1f} M | {mean:.2f}{seeds} |")
    return rows


def command(result: Mapping[str, Any], model: str, ratio: float) -> str:
    """Return the command of the recommended cells, from the protocol of the results."""
    protocol, last = result["protocol"], max(result["cells"], key=lambda cell: cell["steps"])
    trained = f" --batch {last['batch']} --lr {last['lr']}" if last["steps"] else ""
    return (
        f"loraprune prune --model {model} --data train.txt --eval test.txt --output small --ratio {ratio} --steps {last['steps']}"
        f"{trained} --length {protocol['length']} --calibration {protocol['tokens']}"
    )


def main(path: Path, ratio: float = 0.2) -> None:
    """Write the figure, and print the command and the table."""
    if not path.is_file():
        sys.exit(f"{path}: no such file; benchmarks/real_models.py writes it")
    result = json.loads(path.read_text(encoding="utf-8"))
    with styled("real-model"):
        write("real-model", picture(result))
    print(command(result, path.stem.removeprefix("real_"), ratio), *table(result, ratio), sep="\n")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2] or [RESULTS]))
