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
    """Names of the written files, as JSON values."""

    values: dict[str, Any]


def redraw(options: ReportConfig) -> Drawn:
    """Write report.html of a run's folder again, and its plots if a folder for them is given.

    Raises:
        CheckpointError: if a run did not write the folder.
        LoraPruneError: if the extra `report` is not installed.
    """
    folder = Path(options.model)
    run = read_run(folder)
    page = render(run)
    names = write_plots(run, Path(options.plots)) if options.plots else []
    replace_text(folder / NAME, page)
    files = [f"{options.plots}/{name}.{kind}" for name in names for kind in ("png", "svg")]
    return Drawn({"page": str(folder / NAME), "plots": files})
