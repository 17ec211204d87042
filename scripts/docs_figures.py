"""Draw the figures of docs/how-it-works.md from a real run on the embedded model.

    loraprune prune --model demo --data stdlib --recipe paper --ratio 0.5 --steps 80 --length 256 --lr 1e-3 --history true --output RUN
    python scripts/docs_figures.py RUN

Every figure is written twice, for light and for dark pages.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from loraprune.families import find_groups
from loraprune.groups import Group
from loraprune.models.opening import load_config
from loraprune.pruning.schedule import Schedule
from loraprune.reporting.plotting import GRID, INK, PALE, PALETTE, inline_svg, new_figure, plain_frame, styled

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "figures"
THEMES = {
    "light": {"--ink": INK, "--grid": GRID, "--pale": "#d3d8de", **{f"--c{n}": one for n, one in enumerate(PALETTE)}},
    "dark": {"--ink": "#e3e6ea", "--grid": "#40454d", "--pale": "#4b525b", "--c0": "#4aa8e8", "--c1": "#f08a3c",
             "--c2": "#2fbf93", "--c3": "#dd95bd", "--c4": "#7cc7f0", "--c5": "#efb440", "--c6": "#ffffff"},
}  # fmt: skip


def write(name: str, figure: Any) -> None:
    """Write a figure as SVG in the colours of both kinds of page."""
    svg = inline_svg(figure)
    for theme, colours in THEMES.items():
        text = svg
        for variable, colour in colours.items():
            text = text.replace(f"var({variable})", colour)
        (FOLDER / f"{name}-{theme}.svg").write_text(text, encoding="utf-8")


def unit_picture(groups: tuple[Group, ...], hidden: int) -> Any:
    """Draw the projections of the first layer to scale: which rows and columns a unit of attention and some of the FFN own."""
    figure = new_figure(5.6, 5.0)
    axes = figure.subplots()
    axes.set_xlim(-10, 1250)
    axes.set_ylim(1060, -120)
    axes.set_aspect("equal")
    axes.axis("off")
    attention, ffn = groups[:2]
    _group(
        axes, attention, 1, 1, 0, hidden, PALETTE[0], "attention: unit 1 of 4, a key-value head with its 2 query heads"
    )
    # One channel of 512 could not be seen.
    _group(axes, ffn, 30, 24, 500, hidden, PALETTE[1], "FFN: units 30 to 53 of 512, each a channel")
    return figure


def _group(axes: Any, group: Group, unit: int, shown: int, top: float, hidden: int, colour: str, words: str) -> None:
    """Draw the weights of a group in a row: rows are owned where units are produced, columns where they are consumed."""
    axes.text(0, top - 70, words, fontsize=10, va="bottom", color=INK)
    x = 0.0
    for span in (span for side in ("out", "in") for span in group.spans if span.side == side):
        size, first, count = group.units * span.width, span.offset + unit * span.width, shown * span.width
        width, height = (hidden, size) if span.side == "out" else (size, hidden)
        piece = ((x, top + first), width, count) if span.side == "out" else ((x + first, top), count, height)
        axes.add_patch(_rectangle((x, top), width, height, PALE))
        axes.add_patch(_rectangle(*piece, colour))
        axes.text(
            x, top - 12, f"{span.module.rpartition('.')[2]}  {height} × {width}", fontsize=8, va="bottom", color=INK
        )
        x += width + 72


def _rectangle(corner: tuple[float, float], width: float, height: float, colour: str) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle(corner, width, height, facecolor=colour, edgecolor="none")


def schedule_picture(report: dict[str, Any]) -> Any:
    """Draw what the cubic schedule asks for, and what the run removed and lost."""
    steps = report["steps"]
    schedule = Schedule("cubic", steps, None, 0.1, 0.1)
    figure = new_figure(7.2, 3.6)
    axes = figure.subplots()
    asked = [report["ratio_requested"] * schedule.progress(step) for step in range(steps + 1)]
    axes.plot(range(steps + 1), asked, color=PALETTE[0], linewidth=1.8, label="due by the schedule")
    done = [(0, 0.0), *((one["step"], one["ratio"]) for one in report["removals"]), (steps, report["ratio_reached"])]
    axes.step(*zip(*done, strict=True), where="post", color=PALETTE[1], linewidth=1.8, label="removed")
    axes.axvspan(0, schedule.first, color=GRID, alpha=0.6, linewidth=0)
    axes.axvspan(schedule.last, steps, color=GRID, alpha=0.6, linewidth=0)
    for middle, words in ((schedule.first / 2, "warm-up"), ((schedule.last + steps) / 2, "cool-down")):
        axes.text(middle, 0.25, words, rotation=90, ha="center", va="center", fontsize=9, color=INK)
    axes.set_xlabel("optimiser step")
    axes.set_ylabel("fraction of prunable parameters")
    axes.set_xlim(0, steps)
    axes.set_ylim(0, 0.55)
    plain_frame(axes)
    axes.legend(loc="lower center", frameon=False)
    return figure


def score_picture(history: dict[str, Any], kept: dict[str, list[int]]) -> Any:
    """Draw the scores of the heads before each removal: a panel a layer, a line a unit, which ends where the unit goes."""
    names = sorted({name.partition("/")[2] for name in history if name.endswith("self_attn")})
    steps = sorted({int(name.partition("/")[0]) for name in history})
    figure = new_figure(8.6, 4.2)
    panels = figure.subplots(2, 3, sharex=True, sharey=True).ravel()
    for layer, (axes, name) in enumerate(zip(panels, names, strict=True)):
        rows = [history[f"{step}/{name}"].tolist() for step in steps]
        for unit in range(len(rows[0])):
            points = [(step, row[unit]) for step, row in zip(steps, rows, strict=True) if not math.isnan(row[unit])]
            stays = unit in kept[name]
            axes.plot(*zip(*points, strict=True), color=PALETTE[0] if stays else PALETTE[1], linewidth=1.5)
            if not stays:
                axes.plot(*points[-1], color=PALETTE[1], marker="x", markersize=6, markeredgewidth=1.6)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0e}".replace("e-0", "e-"))
        axes.set_title(f"layer {layer}", fontsize=10, loc="left")
        plain_frame(axes)
    figure.supxlabel("optimiser step", fontsize=10)
    figure.supylabel("score (Eq 11)", fontsize=10)
    handles = [panels[0].plot([], [], color=PALETTE[0])[0], panels[0].plot([], [], color=PALETTE[1], marker="x")[0]]
    figure.legend(handles, ["kept", "removed (cross: last score)"], loc="outside upper right", ncols=2, frameon=False)
    return figure


def pipeline_picture() -> Any:
    """Draw what a run does, and what happens in every optimiser step."""
    figure = new_figure(8.6, 3.9)
    axes = figure.subplots()
    axes.set_xlim(-0.5, 100)
    axes.set_ylim(0, 46)
    axes.axis("off")
    line = (("model", "find_groups\ncheck_groups"), ("attach LoRA", "on every projection\nthat a unit owns"),
            ("train", "score, average,\nremove"), ("merge", "W0 + s·B·A"), ("verify", "masked = sliced\n= reloaded"),
            ("evaluate", "dense beside\npruned"))  # fmt: skip
    for place, (head, words) in enumerate(line):
        _box(axes, place * 17, 31, 14.4, 13, head, words, PALETTE[1] if head == "train" else PALETTE[0])
        if place:
            _arrow(axes, (place * 17 - 2.4, 37.5), (place * 17 - 0.2, 37.5))
    loop = (("backward", "gradients of A and B,\nnot of W0"), ("Eq 10", "one number\nper weight"), ("Eq 4", "one number\nper unit"),
            ("Eq 11", "moving average"), ("schedule", "how many units\nto remove now"),
            ("slice", "W0, A, B and\nAdamW's state"))  # fmt: skip
    for place, (head, words) in enumerate(loop):
        _box(axes, place * 17, 5, 14.4, 13, head, words, PALETTE[1])
        if place:
            _arrow(axes, (place * 17 - 2.4, 11.5), (place * 17 - 0.2, 11.5))
    axes.plot([34, 0], [31, 18], color=INK, linewidth=0.8, linestyle=":")
    axes.plot([48.4, 99.4], [31, 18], color=INK, linewidth=0.8, linestyle=":")
    axes.annotate(
        "", (7, 4.6), (92, 4.6), arrowprops={"arrowstyle": "->", "color": INK, "connectionstyle": "bar,fraction=-0.03"}
    )
    axes.text(50, 0.1, "next step, on a smaller model", ha="center", va="bottom", fontsize=9, color=INK)
    return figure


def _box(axes: Any, x: float, y: float, width: float, height: float, head: str, words: str, colour: str) -> None:
    from matplotlib.patches import FancyBboxPatch

    style = "round,pad=0,rounding_size=1.2"
    axes.add_patch(
        FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor="none", edgecolor=colour, linewidth=1.6)
    )
    axes.text(x + width / 2, y + height - 2, head, ha="center", va="top", fontsize=10, weight="bold", color=INK)
    axes.text(x + width / 2, y + 4.3, words, ha="center", va="center", fontsize=7.6, color=INK)


def _arrow(axes: Any, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.annotate(
        "", end, start, arrowprops={"arrowstyle": "->", "color": INK, "linewidth": 1.2, "shrinkA": 0, "shrinkB": 0}
    )


def main(run: Path) -> None:
    """Draw every figure."""
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    plan = json.loads((run / "plan.json").read_text(encoding="utf-8"))["groups"]
    kept = {name: group["kept"] for name, group in plan.items()}
    config = load_config("demo")
    FOLDER.mkdir(exist_ok=True)
    pictures: dict[str, Callable[[], Any]] = {
        "units": lambda: unit_picture(tuple(find_groups(config)), config.hidden_size),
        "schedule": lambda: schedule_picture(report),
        "scores": lambda: score_picture(load_file(run / "scores_history.safetensors"), kept),
        "pipeline": pipeline_picture,
    }
    for name, draw in pictures.items():
        with styled(name):
            write(name, draw())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
