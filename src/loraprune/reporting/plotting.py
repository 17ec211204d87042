"""The style of all plots. The only file that imports matplotlib, and only when something is drawn.

Knows nothing about the content of plots.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any

from loraprune.errors import LoraPruneError

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
"""the colours of Okabe and Ito, which colour-blind readers can tell apart, without yellow, which is too pale on white"""
MARKERS = "osD^vP"
"""six for seven colours, so that a pair of both repeats only after 42 lines"""
INK = "#1f2328"
"""text, ticks and frames"""
GRID = "#dddddd"
PALE = "#b8bec6"
"""colour of references: dense beside pruned, removed beside kept"""


class MissingMatplotlib(LoraPruneError):
    """matplotlib, of the extra `report`, is not installed."""


@contextmanager
def styled(name: str = "plot") -> Iterator[None]:
    """Draw in the project's style, whatever the user's own settings are; `name` makes the ids in an SVG repeatable.

    Raises:
        MissingMatplotlib: if it is not installed.
    """
    mpl = _import("matplotlib")
    inked = ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color")
    with mpl.rc_context():
        mpl.rcdefaults()
        # A dollar sign in a model's name does not start a formula.
        mpl.rcParams.update({"svg.hashsalt": name, "svg.fonttype": "none", "text.parse_math": False})
        mpl.rcParams.update(dict.fromkeys(inked, INK))
        yield


def new_figure(width: float, height: float) -> Any:
    """Return an empty figure; `width` and `height` in inches.

    Raises:
        MissingMatplotlib: if it is not installed.
    """
    figure = _import("matplotlib.figure")
    return figure.Figure(figsize=(width, height), facecolor="white", layout="constrained")


def _import(name: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError:
        raise MissingMatplotlib(
            "no plots: matplotlib is not installed; pip install 'loraprune[report]' adds it"
        ) from None


def save(figure: Any, folder: Path, name: str) -> None:
    """Write a figure as PNG and SVG, each atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind in ("png", "svg"):
        temporary = folder / f".{name}.{kind}"
        figure.savefig(temporary, format=kind, dpi=144)
        temporary.replace(folder / f"{name}.{kind}")


def inline_svg(figure: Any) -> str:
    """Return a figure as an SVG element for an HTML page, whose custom properties --ink, --grid, --pale and --c0 to --c6 colour it."""
    text = StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    # Every figure uses the same ids for its groups, and an id may occur only once in a page.
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for colour, name in (
        (INK, "ink"),
        (GRID, "grid"),
        (PALE, "pale"),
        *((one, f"c{n}") for n, one in enumerate(PALETTE)),
    ):
        svg = svg.replace(colour, f"var(--{name})")
    return svg


def lines(
    series: Mapping[str, Sequence[tuple[float, float, float]]],
    axes: Any,
    *,
    style: Callable[[str], str] = lambda _: "-",
) -> None:
    """Draw name -> (x, y, spread of y) as lines, each with its own colour and marker."""
    for place, (name, points) in enumerate(series.items()):
        x, y, error = zip(*sorted(points), strict=True)
        axes.errorbar(
            x, y, yerr=error, label=name, color=PALETTE[place % len(PALETTE)], marker=MARKERS[place % len(MARKERS)],
            linestyle=style(name), linewidth=1.6, markersize=6, capsize=3,
        )  # fmt: skip
    plain_frame(axes)


def ring(axes: Any, point: tuple[float, float], words: str) -> None:
    """Draw a ring around a point, and write words below it."""
    axes.plot(*point, "o", color=INK, markersize=15, fillstyle="none", zorder=10)
    axes.annotate(words, point, (0, -10), textcoords="offset points", ha="center", va="top", fontsize=8, color=INK)


def plain_frame(axes: Any, *, grid: str = "both") -> None:
    """Draw a pale grid along `x`, `y` or both, and remove the frame at the top and right."""
    axes.grid(color=GRID, linewidth=0.7, axis=grid)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def whole_ticks(axis: Any) -> None:
    """Put ticks at whole numbers only: there is no step 2.5 and no half of a head."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins="auto", steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))


def plain_ticks(axis: Any) -> None:
    """Label a logarithmic axis with 20 instead of 2 x 10^1, with few enough ticks that labels do not overlap."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())
