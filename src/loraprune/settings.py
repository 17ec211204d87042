"""Options of the commands that look at models, and of those that start runs.

Knows nothing about torch, so that `--help` answers at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from loraprune.compare.grid import CELLS, OPTIONS, Cell, expand
from loraprune.config import LoRAPruneConfig, PruneConfig
from loraprune.options import BatchOptions, Dtype, MachineOptions, ModelOptions, Options, failed
from loraprune.output import output_problem


@dataclass(frozen=True, kw_only=True)
class InspectConfig(ModelOptions):
    """Show a model's family, groups, units and parameters a unit, or say why it cannot be pruned."""


@dataclass(frozen=True, kw_only=True)
class PlanConfig(LoRAPruneConfig, BatchOptions, ModelOptions):
    """Predict shapes, parameters, file size and training memory from the configuration alone."""

    dtype: Dtype = "bfloat16"
    """precision of the weights while training"""

    def problems(self) -> list[str]:
        """Return one sentence for every option that is wrong."""
        shapes = f"--sparsity {self.sparsity}: shapes and sizes stay those of the dense model; there is nothing to plan"
        return [*super().problems(), *failed((self.sparsity is None, shapes))]


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(ModelOptions, MachineOptions):
    """Measure how good a model is at its task (perplexity, accuracy, ...), with the protocol recorded."""

    data: str
    """what to measure on: a file, a folder, a hub id, or `stdlib` (its held-out modules)"""
    against: str | None = None
    """a second model to show beside it, usually the dense one"""
    length: int = 512
    """tokens in a window; the paper's protocols use 128 and 2048"""
    batch: int = 8
    """windows at a time"""

    def problems(self) -> list[str]:
        """Return one sentence for every option that is wrong."""
        least = (("length", self.length, 2), ("batch", self.batch, 1))
        return [*super().problems(), *at_least(*least)]


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig(ModelOptions, MachineOptions):
    """Measure parameters, MACs, latency, throughput and file size, side by side in one process."""

    against: str | None = None
    """the model to compare with, usually the dense one; runs alternate A B A B"""
    batches: list[int] = field(default_factory=lambda: [1, 16])
    """batch sizes of the prefill"""
    length: int = 256
    """tokens in a prefill"""
    tokens: int = 32
    """tokens to generate for the decoding speed"""
    repeats: int = 10
    """timed runs of each"""

    def problems(self) -> list[str]:
        """Return one sentence for every option that is wrong."""
        values = [("length", self.length), ("tokens", self.tokens), ("repeats", self.repeats)]
        values += [("batches", batch) for batch in self.batches]
        return [*super().problems(), *at_least(*((name, value, 1) for name, value in values))]


@dataclass(frozen=True, kw_only=True)
class ExportConfig(ModelOptions):
    """Write a pruned model in another format, and check it by loading it."""

    output: str
    """folder to write"""
    format: str = "padded"
    """`padded`: the dense stock shapes with zeros for removed units, for loaders that know no other"""
    overwrite: bool = False
    """replace the output folder if a run wrote it"""

    def problems(self) -> list[str]:
        """Return one sentence for every option that is wrong."""
        problem = output_problem(self.output, overwrite=self.overwrite)
        return [*super().problems(), *([problem] if problem else [])]


@dataclass(frozen=True, kw_only=True)
class DemoConfig(Options):
    """Prune the model that ships with the package to 50 %, offline, and show dense against pruned."""

    output: str = "demo-pruned"
    """folder to write"""
    steps: int = 120
    """optimiser steps"""
    ratio: float = 0.5
    """fraction of the prunable parameters to remove"""
    seed: int = 0
    """seed of everything random"""
    overwrite: bool = False
    """replace the output folder if a run wrote it"""


@dataclass(frozen=True, kw_only=True)
class CompareConfig(PruneConfig):
    """Compare criteria, ratios, schedules and any other options over several seeds: one table, plots; goes on where it stopped."""

    grid: dict[str, list[Any]] = field(default_factory=dict)
    """option -> values, such as {criterion: [lora, gate], ratio: [0.2, 0.5], seed: [0, 1, 2]}: every combination is a cell"""
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """name -> options, such as {paper: {criterion: lora}, best: {criterion: gate}}: each is crossed with the grid"""
    baselines: list[Literal["finetune"]] = field(default_factory=list)
    """finetune: the dense model tuned with the same training options, once a seed; gaps are measured from it"""
    reference: str | None = None
    """the run, or the value of an option, that the others are compared with, such as paper or lora"""
    jobs: int = 1
    """cells at a time, each a process of its own; above 1 their seconds compare little"""
    keep: bool = False
    """keep the weights of every cell; otherwise only its report, plan and scores stay"""
    overwrite: bool = False
    """run finished cells again"""

    def expand(self) -> tuple[list[Cell], list[str]]:
        """Return all cells, and what is wrong with them."""
        base = {name: getattr(self, name) for name in OPTIONS}
        return expand(base, self.grid, runs=self.runs, baselines=self.baselines, reference=self.reference)

    def problems(self) -> list[str]:
        """Return one sentence for every option that is wrong; those of the cells are looked at cell by cell."""
        output = Path(self.output)
        found = [*Options.problems(self), *at_least(("jobs", self.jobs, 1))]
        if output.is_file():
            found.append(f"--output {output}: this is a file; name a folder")
        elif output.is_dir() and any(output.iterdir()) and not (output / CELLS).is_dir():
            found.append(f"--output {output}: it holds something else than a comparison; choose another folder")
        return [*found, *self.expand()[1]]


def at_least(*values: tuple[str, int, int]) -> list[str]:
    """Return a message for every (option, value, least) whose value is too small."""
    return [f"--{name} {value}: at least {least} is needed" for name, value, least in values if value < least]
