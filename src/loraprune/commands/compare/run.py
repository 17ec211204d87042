"""Run a comparison: every cell in its own process, finished cells kept, results written.

A cell's process is the command line's, so that a crash or a lack of memory ends one cell and not the comparison.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from loraprune.commands.compare import plots
from loraprune.commands.compare.advice import recommend
from loraprune.commands.compare.grid import CELLS, Cell
from loraprune.commands.compare.settings import CompareConfig
from loraprune.commands.compare.summary import PENDING, Comparison, entry, markdown, summarise
from loraprune.config.training import PruneConfig, as_dict
from loraprune.errors import ConfigError, Findings
from loraprune.preflight import NEEDS, check_data, check_model
from loraprune.reporting.plotting import MissingMatplotlib
from loraprune.runtime.atomic import replace_text
from loraprune.runtime.device import choose_device
from loraprune.scoring.criteria import criteria

KEPT = (
    "report.json", "run.yaml", "plan.json", "scores.safetensors", "scores_history.safetensors", "machine.json", "report.html",
)  # fmt: skip
"""files of a cell that the table and the plots need"""
POLL_SECONDS = 0.1
GRACE_SECONDS = 10

logger = logging.getLogger(__name__)


def compare(options: CompareConfig) -> Comparison:
    """Run every cell that is not finished, and write results.json, table.md and plots.

    Raises:
        ConfigError: for options that no cell can run with; nothing is run then.
    """
    cells = list({cell.key: cell for cell in options.expand()[0]}.values())
    check_cells(cells)
    output, folder = Path(options.output), Path(options.output) / CELLS
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output {output}: cannot be written ({error.strerror}); choose another folder") from None
    waiting = [cell for cell in cells if options.overwrite or not is_finished(folder, cell)]
    errors = {cell.key: PENDING for cell in waiting}
    try:
        run_cells(waiting, folder, errors, jobs=options.jobs, keep=options.keep)
    except KeyboardInterrupt as interrupt:
        write(options, errors)
        interrupt.args = (f"finished cells are kept in {folder}; the same command continues",)
        raise
    result = write(options, errors)
    try:
        plots.draw(result.values, folder, output / "plots")
    except MissingMatplotlib as error:
        logger.warning("%s", error)
    return result


def check_cells(cells: Sequence[Cell]) -> None:
    """Check the inputs of all cells, each model, text and criterion once.

    Raises:
        LoraPruneError: for everything that is wrong, at once.
    """
    found, configs = Findings(), [cell.config for cell in cells]
    for name in dict.fromkeys(config.chosen_criterion for config in configs if isinstance(config, PruneConfig)):
        with found.check():
            criteria.get(name)
    for device in dict.fromkeys(config.device for config in configs):
        with found.check():
            choose_device(device)
    read = {
        (model, trust): check_model(model, NEEDS["compare"], found, trust_remote_code=trust)
        for model, trust in dict.fromkeys((config.model, config.trust_remote_code) for config in configs)
    }
    asked = {(one.model, one.data, one.eval, one.task, one.columns, one.trust_remote_code): one for one in configs}
    for (model, data, held_out, task, _, trust), one in asked.items():
        check_data(
            model, read[model, trust], data, held_out, found, task=task, columns=one.roles(), trust_remote_code=trust
        )
    found.raise_all()


def is_finished(folder: Path, cell: Cell) -> bool:
    """Return whether a cell with the same options has a report; the folder of a run appears only when it is complete."""
    return (folder / cell.key / "report.json").is_file()


def run_cells(waiting: Sequence[Cell], folder: Path, errors: dict[str, str], *, jobs: int, keep: bool) -> None:
    """Run cells, `jobs` at a time; a finished cell is removed from `errors`, a failed one stores its reason there."""
    queue = deque(waiting)
    running: dict[str, tuple[Cell, subprocess.Popen[bytes]]] = {}
    with CellBar(len(waiting), jobs) as bar:
        try:
            while queue or running:
                while queue and len(running) < jobs:
                    cell = queue.popleft()
                    bar.begin(cell)
                    running[cell.key] = cell, start(cell, folder, jobs)
                for key, (cell, process) in list(running.items()):
                    if process.poll() is None:
                        continue
                    del running[key]
                    error = finish(cell, folder, process.returncode, keep=keep)
                    if error is None:
                        del errors[key]
                    else:
                        errors[key] = error
                    bar.end(cell, error)
                time.sleep(POLL_SECONDS)
        finally:
            stop([process for _, process in running.values()])
            for cell in waiting:
                if not is_finished(folder, cell):
                    shutil.rmtree(folder / cell.key, ignore_errors=True)


def start(cell: Cell, folder: Path, jobs: int) -> subprocess.Popen[bytes]:
    """Start the process of a cell, which continues from the checkpoints of an earlier attempt."""
    shutil.rmtree(folder / cell.key, ignore_errors=True)
    config = folder / f"{cell.key}.yaml"
    config.write_text(yaml.safe_dump(as_dict(cell.config), sort_keys=False), encoding="utf-8")
    environment = dict(os.environ)
    if jobs > 1:  # processes that all use every core slow each other down
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    with (folder / f"{cell.key}.log").open("wb") as log:
        # In its own session it receives an interrupt only once, from here, and can clean up.
        return subprocess.Popen(
            command(cell, config), stdout=subprocess.DEVNULL, stderr=log, stdin=subprocess.DEVNULL, env=environment,
            start_new_session=True,
        )  # fmt: skip


def command(cell: Cell, config: Path) -> list[str]:
    """Return the command line of a cell."""
    return [sys.executable, "-m", "loraprune", cell.job, "--config", str(config), "--resume", "--json"]


def finish(cell: Cell, folder: Path, code: int, *, keep: bool) -> str | None:
    """Clean up after the process of a cell; return the reason if it failed."""
    if code or not is_finished(folder, cell):
        lines = (folder / f"{cell.key}.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        if code < 0:
            name = signal.Signals(-code).name
            return f"killed by {name}" + (", perhaps for lack of memory" if name == "SIGKILL" else "")
        return lines[-1].removeprefix("loraprune: ").removeprefix("error: ") if lines else f"exit code {code}"
    (folder / cell.key / "machine.json").write_text(json.dumps(machine()) + "\n", encoding="utf-8")
    for path in [] if keep else (folder / cell.key).iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in KEPT:
            path.unlink()
    return None


def stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Interrupt processes and wait until they have cleaned up."""
    for process in processes:
        process.send_signal(signal.SIGINT)
    for process in processes:
        try:
            process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()


def machine() -> dict[str, Any]:
    """Return the hardware that a cell ran on."""
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": psutil.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def write(options: CompareConfig, errors: Mapping[str, str]) -> Comparison:
    """Write results.json and table.md, each completely or not at all."""
    output = Path(options.output)
    entries = [entry(cell, output / CELLS, errors.get(cell.key)) for cell in options.expand()[0]]
    recipes = summarise(entries, options.reference)
    values = {"format": 1, "model": options.model, "data": options.data, "reference": options.reference,
              "recipes": recipes, "recommendations": recommend(entries, recipes), "cells": entries}  # fmt: skip
    for name, text in (("results.json", json.dumps(values, indent=1) + "\n"), ("table.md", markdown(values))):
        replace_text(output / name, text)
    return Comparison(values)


class CellBar:
    """Progress on stderr: a bar on a terminal, otherwise one line per cell."""

    def __init__(self, total: int, jobs: int) -> None:
        self.total, self.jobs = total, jobs
        self.done = 0
        self.began: dict[str, float] = {}
        self.seconds: list[float] = []
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"), console=Console(file=sys.stderr), disable=not sys.stderr.isatty(),
        )  # fmt: skip

    def __enter__(self) -> CellBar:
        """Show the bar."""
        self._bar.start()
        self._task = self._bar.add_task("cells", total=self.total, left="")
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the bar."""
        self._bar.stop()

    def begin(self, cell: Cell) -> None:
        """Show which cell is running."""
        self.began[cell.key] = time.perf_counter()
        self._bar.update(self._task, description=cell.name)

    def end(self, cell: Cell, error: str | None) -> None:
        """Count a cell, and estimate the remaining time from the cells so far."""
        self.done += 1
        self.seconds.append(time.perf_counter() - self.began[cell.key])
        rest = sum(self.seconds) / self.done * (self.total - self.done) / self.jobs
        left = f"about {rest / 60:.0f} min left"
        self._bar.update(self._task, completed=self.done, left=left)
        if error is not None or self._bar.disable:
            how = f"failed: {error}" if error is not None else f"{self.seconds[-1]:.0f} s"
            logger.info("cell %d of %d: %s: %s; %s", self.done, self.total, cell.name, how, left)
