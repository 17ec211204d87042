"""Draw the figure of the README from the results of `benchmarks/real_models.py`, and print its command and table.

    python -m scripts.readme_figure [benchmarks/results/real_smollm2-135m.json]

The figure shows the perplexity of every method, a panel for each number of training steps, and size and speed against the
dense model. It is written to docs/figures as real-model-light.svg and real-model-dark.svg. The README includes both:

    <picture>
      <source media="(prefers-color-scheme: dark)" srcset="docs/figures/real-model-dark.svg">
      <img alt="Perplexity of SmolLM2-135M by method, and its size and speed" src="docs/figures/real-model-light.svg">
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

from loraprune.reporting.plotting import INK, PALE, PALETTE, new_figure, plain_frame, styled

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "real_smollm2-135m.json"
SPEED = "{}_speed.json"
"""name of the file with `loraprune benchmark --model PRUNED --against DENSE --json`, beside the results"""
NAMES = {
    "dense": "dense",
    "recommended": "loraprune",
    "optipfair": "OptiPFair",
    "torch-pruning": "Torch-Pruning",
}
"""method in the results -> its name in the figure, from top to bottom"""
COLOURS = {"dense": PALE, "recommended": PALETTE[0]}
"""colour of a method's bar; the others share one"""
ROWS = ("dense", "recommended", "optipfair")
"""methods in the table of the README"""
TEXTS = {"wikitext": "WikiText-2", "ptb": "PTB"}
"""name of a text in the results -> its name in the figure"""
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


def point(cells: Sequence[Mapping[str, Any]], method: str, ratio: float, steps: int, text: str) -> Point:
    """Return the figures of a method at a ratio, over its seeds."""
    same = [cell for cell in chosen(cells, method, steps) if method == "dense" or cell["ratio"] == ratio]
    if not same:
        sys.exit(f"no cells of {method} at ratio {ratio}; run benchmarks/real_models.py with --ratios {ratio}")
    values = [cell["perplexity"][text] for cell in same]
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return statistics.mean(cell["parameters"] for cell in same) / 1e6, statistics.mean(values), spread


def picture(result: Mapping[str, Any], ratio: float, speed: Mapping[str, Any]) -> Any:
    """Draw the perplexity of every method, a panel for each number of steps; in the last panel size and time against the dense model."""
    cells = result["cells"]
    text = first_text(cells)
    numbers = sorted({cell["steps"] for cell in cells})
    figure = new_figure(3.3 * (len(numbers) + 1) + 1.2, 2.3)
    panels = figure.subplots(1, len(numbers) + 1)
    for axes, steps in zip(panels, numbers, strict=False):
        found = {name: point(cells, name, ratio, steps, text) for name in NAMES}
        bars(
            axes,
            {NAMES[name]: (mean, COLOURS.get(name, PALETTE[1]), f"{mean:.1f}") for name, (_, mean, _) in found.items()},
        )
        axes.set_title("no training" if steps == 0 else f"{steps} steps of LoRA", fontsize=10, loc="left")
        axes.set_xlabel(f"perplexity on {TEXTS.get(text, text)}: lower is better", fontsize=9)
    bars(panels[-1], against_dense(speed))
    panels[-1].set_title(f"loraprune, ratio {ratio:g}", fontsize=10, loc="left")
    panels[-1].set_xlabel("% of the dense model", fontsize=9)
    return figure


def bars(axes: Any, shown: Mapping[str, tuple[float, str, str]]) -> None:
    """Draw name -> (length, colour, label) as horizontal bars, the first at the top."""
    lengths = [length for length, _, _ in shown.values()]
    drawn = axes.barh(list(shown), lengths, color=[colour for _, colour, _ in shown.values()], height=0.62)
    axes.bar_label(drawn, [label for _, _, label in shown.values()], padding=3, fontsize=9, color=INK)
    axes.set_xlim(0, max(lengths) * 1.22)
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0, labelsize=9)
    axes.tick_params(axis="x", labelsize=8)
    plain_frame(axes, grid="x")


def against_dense(speed: Mapping[str, Any]) -> dict[str, tuple[float, str, str]]:
    """Return size and time of the pruned model as bars, in per cent of the dense one."""
    *_, ratios = speed["ratios"].values()  # the dense model comes first
    parts = {"parameters": ratios["parameters"], "multiplications": ratios["macs"]}
    parts |= {f"prefill time, batch {batch}": 1 / value for batch, value in ratios["prefill_speedup"].items()}
    return {name: (100 * value, PALETTE[0], f"{100 * value:.0f} %") for name, value in parts.items()}


def first_text(cells: Sequence[Mapping[str, Any]]) -> str:
    """Return the name of the text that the figure and the table are about."""
    return str(next(iter(cells[0]["perplexity"])))


def table(result: Mapping[str, Any], ratio: float) -> list[str]:
    """Return the table of the README: parameters and perplexity at a ratio, after the most steps that were run."""
    cells = result["cells"]
    text, steps = first_text(cells), max(cell["steps"] for cell in cells)
    rows = [f"| {text}, {steps} steps | parameters | perplexity |", "|---|---|---|"]
    for method in ROWS:
        size, mean, spread = point(cells, method, ratio, steps, text)
        seeds = f" ± {spread:.2f}" if len({cell["seed"] for cell in chosen(cells, method, steps)}) > 1 else ""
        rows.append(f"| {NAMES[method]} | {size:.1f} M | {mean:.2f}{seeds} |")
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
    speed = path.with_name(SPEED.format(path.stem))
    if not speed.is_file():
        sys.exit(f"{speed}: no such file; `loraprune benchmark --model PRUNED --against DENSE --json` prints it")
    result = json.loads(path.read_text(encoding="utf-8"))
    with styled("real-model"):
        write("real-model", picture(result, ratio, json.loads(speed.read_text(encoding="utf-8"))))
    print(command(result, path.stem.removeprefix("real_"), ratio), *table(result, ratio), sep="\n")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2] or [RESULTS]))
