"""The style that every plot of the project has. The only file that imports matplotlib, and only when something is drawn.

Knows nothing about what is drawn.
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
"""the colours of Okabe and Ito but yellow, which is too pale on white: told apart by colour-blind readers too"""
MARKERS = "osD^vP"
"""as many as are not a divisor of the colours, so that no pair of both comes back soon"""
INK = "#1f2328"
"""text, ticks and frames"""
GRID = "#dddddd"
PALE = "#b8bec6"
"""what another colour is compared with: dense beside pruned, removed beside kept"""


class MissingMatplotlib(LoraPruneError):
    """The extra that draws is not installed."""


@contextmanager
def styled(name: str = "plot") -> Iterator[None]:
    """Draw in the project's style whatever the user's own settings are; `name` makes the ids in an SVG repeatable.

    Raises:
        MissingMatplotlib: if it is not installed.
    """
    mpl = _import("matplotlib")
    inked = ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color")
    with mpl.rc_context():
        mpl.rcdefaults()
        # A dollar in a model's name is no formula.
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
        raise MissingMatplotlib("no plots: matplotlib is missing; pip install 'loraprune[report]' adds it") from None


def save(figure: Any, folder: Path, name: str) -> None:
    """Write a figure as PNG and SVG, whole or not at all."""
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
    # Groups are named alike in every figure, and an id may stand once in a page.
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for colour, name in ((INK, "ink"), (GRID, "grid"), (PALE, "pale"), *((one, f"c{n}") for n, one in enumerate(PALETTE))):
        svg = svg.replace(colour, f"var(--{name})")
    return svg


def lines(
    series: Mapping[str, Sequence[tuple[float, float, float]]],
    axes: Any,
    *,
    style: Callable[[str], str] = lambda _: "-",
) -> None:
    """Draw name -> (x, y, spread of y) as lines, each with a colour and a marker of its own."""
    for place, (name, points) in enumerate(series.items()):
        x, y, error = zip(*sorted(points), strict=True)
        axes.errorbar(
            x, y, yerr=error, label=name, color=PALETTE[place % len(PALETTE)], marker=MARKERS[place % len(MARKERS)],
            linestyle=style(name), linewidth=1.6, markersize=6, capsize=3,
        )  # fmt: skip
    plain_frame(axes)


def plain_frame(axes: Any, *, grid: str = "both") -> None:
    """Give a plot a pale grid, along `x`, `y` or both, and no frame above and at the right."""
    axes.grid(color=GRID, linewidth=0.7, axis=grid)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def whole_ticks(axis: Any) -> None:
    """Put ticks at whole numbers only: there is no step 2.5 and no half of a head."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins="auto", steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))


def plain_ticks(axis: Any) -> None:
    """Write 20 instead of 2 x 10^1 on a logarithmic axis, and not so many that they touch."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())
