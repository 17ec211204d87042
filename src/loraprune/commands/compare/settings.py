"""Options of a comparison. Imports no torch, so that `--help` is fast."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from loraprune.commands.compare.grid import CELLS, OPTIONS, Cell, Value, expand
from loraprune.config.base import Options, at_least
from loraprune.config.training import PruneConfig
from loraprune.runtime.output import replaced_input


@dataclass(frozen=True, kw_only=True)
class CompareConfig(PruneConfig):
    """Run a grid of options over several seeds, and write one table and plots."""

    grid: dict[str, list[Value]] = field(default_factory=dict)
    """options and their values, such as {criterion: [lora, gate], ratio: [0.2, 0.5], seed: [0, 1, 2]}; every combination is one run (a
    cell)"""
    runs: dict[str, dict[str, Value]] = field(default_factory=dict)
    """named sets of options, such as {paper: {recipe: paper}, mine: {criterion: flap}}; each is combined with the grid"""
    baselines: list[Literal["finetune"]] = field(default_factory=list)
    """[finetune] also tunes the dense model with the same training options, once per seed; gaps are measured from it"""
    reference: str | None = None
    """named set or value of an option that the others are compared with, such as paper or lora"""
    jobs: int = 1
    """cells to run at the same time, each in its own process; above 1 their times are not comparable"""
    keep: bool = False
    """keep the weights of every cell, not only its report, plan and scores"""
    overwrite: bool = False
    """run finished cells again"""
    html: bool = False
    """also write report.html for every cell"""

    def expand(self) -> tuple[list[Cell], list[str]]:
        """Return all cells, and what is wrong with them."""
        base = {name: getattr(self, name) for name in OPTIONS}
        return expand(base, self.grid, runs=self.runs, baselines=self.baselines, reference=self.reference)

    def problems(self) -> list[str]:
        """Return one sentence for every option that is wrong; options of cells are checked per cell."""
        output = Path(self.output)
        found = [*Options.problems(self), *at_least(("jobs", self.jobs, 1))]
        if output.is_file():
            found.append(f"--output {output}: this is a file; name a folder")
        elif output.is_dir() and any(output.iterdir()) and not (output / CELLS).is_dir():
            found.append(f"--output {output}: not a folder of a comparison; choose another folder")
        if problem := replaced_input(str(output / CELLS), self.inputs()):
            found.append(problem)
        return [*found, *self.expand()[1]]
