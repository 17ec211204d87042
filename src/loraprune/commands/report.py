"""The command `report`: write report.html of a finished run again, and its plots as files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loraprune.config.commands import ReportConfig
from loraprune.reporting.html.folder import read_run
from loraprune.reporting.html.page import NAME, render, write_plots
from loraprune.runtime.atomic import replace_text


@dataclass(frozen=True, slots=True)
class Drawn:
    """The files that were drawn, ready for JSON."""

    values: dict[str, Any]


def redraw(options: ReportConfig) -> Drawn:
    """Write report.html of a run's folder anew, and its plots as files where they are asked for.

    Raises:
        CheckpointError: if it is no such folder.
        LoraPruneError: if the extra that draws is not installed.
    """
    folder = Path(options.model)
    run = read_run(folder)
    page = render(run)
    names = write_plots(run, Path(options.plots)) if options.plots else []
    replace_text(folder / NAME, page)
    files = [f"{options.plots}/{name}.{kind}" for name in names for kind in ("png", "svg")]
    return Drawn({"page": str(folder / NAME), "plots": files})
