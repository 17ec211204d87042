"""Expand a grid into cells: every combination of named runs, options and seeds, with their baselines.

The options and their types are those of `PruneConfig`. Imports no torch.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias, get_type_hints

from loraprune.config.base import dashed
from loraprune.config.recipes import recipe
from loraprune.config.sparsity import in_base_60
from loraprune.config.training import WITHOUT_EFFECT, FinetuneConfig, PruneConfig
from loraprune.config.values import WrongValueError, read_value
from loraprune.errors import ConfigError, nearest, problems_of

RUN = "run"
"""label of a named run; all other labels are options"""
RECIPE = "recipe"
"""key of a named run for a recipe; the other keys override its options"""
SEED = "seed"
CELLS = "cells"
"""folder for the cells in the output of a comparison"""
OURS = ("output", "overwrite", "html")
"""options that the comparison sets for every cell"""
SIZES = "sizes"
NO_SIZES = "a cell is one model; give --grid.size [0.9,0.8] instead"
"""what is wrong with several sizes in a comparison"""
BASELINES: Mapping[str, type[FinetuneConfig]] = {"finetune": FinetuneConfig}

Value: TypeAlias = str | int | float | bool | None
"""of an option in a grid or a run. Not `Any`, of which the parser would read a quoted "2:4" as YAML once more"""
OPTIONS: Mapping[str, Field[Any]] = {field.name: field for field in fields(PruneConfig)}


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of a comparison."""

    job: str
    """the command that carries it out"""
    labels: Mapping[str, str]
    """what distinguishes it from the others: `run` or option -> text"""
    config: PruneConfig | FinetuneConfig
    baseline: str | None
    """key of the dense model tuned with the same options"""

    @property
    def key(self) -> str:
        """Return the name of its folder, the digest of its options."""
        return Path(self.config.output).name

    @property
    def recipe(self) -> str:
        """Return the name shared by cells that differ only in the seed."""
        return recipe_name(self.labels) or self.job

    @property
    def name(self) -> str:
        """Return recipe and seed."""
        return f"{self.recipe}, seed {self.config.seed}"


def recipe_name(labels: Mapping[str, str]) -> str:
    """Return labels as text, without the seed."""
    return ", ".join(words for axis, words in labels.items() if axis != SEED)


def digest(job: str, options: Mapping[str, Any]) -> str:
    """Return a short digest of a job and all options that change its result."""
    counted = {name: value for name, value in options.items() if name not in WITHOUT_EFFECT}
    return hashlib.sha256(json.dumps([job, counted], sort_keys=True).encode()).hexdigest()[:12]


def expand(
    base: Mapping[str, Any],
    grid: Mapping[str, Sequence[Any]],
    *,
    runs: Mapping[str, Mapping[str, Any]],
    baselines: Sequence[str],
    reference: str | None,
) -> tuple[list[Cell], list[str]]:
    """Return all cells, baselines first, and one sentence for everything that is wrong.

    Args:
        base: every option of `PruneConfig`, for the cells that do not override it.
        grid: option -> values; every value meets every other.
        runs: name -> options; every run meets every combination of the grid.
        baselines: jobs to do once for every set of training options.
        reference: the label of the cells that the others are compared with.
    """
    problems: list[str] = [] if base[SIZES] is None else [f"--{SIZES}: {NO_SIZES}"]
    axes = dict(_good_axes(base, grid, problems))
    named = dict(_good_runs(runs, grid, problems)) or {None: {}}
    cells: list[Cell] = []
    refused: dict[str, list[str]] = {}
    for (run, changes), values in itertools.product(named.items(), itertools.product(*axes.values())):
        combination = dict(zip(axes, values, strict=True))
        labels = {RUN: run} if run is not None else {}
        labels |= {name: _words(name, value) for name, value in combination.items()}
        try:
            cells.append(_cell(labels, {**base, **changes, **combination}, baselines))
        except ConfigError as error:
            for problem in problems_of(error):
                refused.setdefault(problem, []).append(recipe_name(labels))
    for message, names in refused.items():
        others = f" (and {len(names) - 1} more cells)" if len(names) > 1 else ""
        problems.append(f"{names[0]}{others}: {message}".removeprefix(": "))
    named_options = dict.fromkeys([*axes, *(name for changes in named.values() for name in changes)])
    dense = {cell.key: cell for job in baselines for pruned in cells for cell in [_dense(job, pruned, named_options)]}
    known = {words: None for cell in cells for axis, words in cell.labels.items() if axis != SEED}
    if cells and reference is not None and reference not in known:
        problems.append(f"--reference {reference}{nearest(reference, known)}: choose one of {', '.join(known)}")
    return [*dense.values(), *cells], problems


def _good_axes(
    base: Mapping[str, Any], grid: Mapping[str, Sequence[Any]], problems: list[str]
) -> Iterator[tuple[str, list[Any]]]:
    """Yield the valid part of a grid, in the types of the options; append what is wrong to `problems`."""
    for name, values in grid.items():
        place = f"grid.{name}"
        problem = _name_problem(place, name)
        if problem:
            problems.append(problem)
            continue
        if not values:
            problems.append(f"{place} is empty: name at least one value, or leave it out")
        if base[name] != OPTIONS[name].default and OPTIONS[name].default is not MISSING:
            problems.append(f"--{dashed(name)} {base[name]} and {place}: set it in one place only")
        good = list(_typed(place, name, values, problems))
        repeated = [value for position, value in enumerate(good) if value in good[:position]]
        problems += [f"{place} {value}: given twice; list each value once" for value in repeated]
        if good:
            yield name, good


def _good_runs(
    runs: Mapping[str, Mapping[str, Any]], grid: Mapping[str, Sequence[Any]], problems: list[str]
) -> Iterator[tuple[str | None, dict[str, Any]]]:
    """Yield the valid options of every named run."""
    for run, changes in runs.items():
        if not isinstance(run, str):
            problems.append(f"runs.{run}: YAML reads this name as a number, not as text; write it in quotes")
            continue
        good = {}
        changes = dict(changes)
        if RECIPE in changes:
            try:
                changes = recipe(str(changes.pop(RECIPE))) | changes
            except ConfigError as error:
                problems.append(f"runs.{run}.{RECIPE}: {error}")
        for name, value in changes.items():
            place = f"runs.{run}.{name}"
            problem = _name_problem(place, name)
            if not problem and name in grid:
                problem = f"{place} and grid.{name}: set it in one place only"
            if problem:
                problems.append(problem)
                continue
            for typed in _typed(place, name, [value], problems):
                good[name] = typed
        yield run, good


def _name_problem(place: str, name: str) -> str | None:
    """Return what is wrong with the name of an option in a grid or a named run."""
    if name in OURS:
        return f"{place}: every cell has a separate folder below --output, and --html is for all; leave it out here"
    if name == SIZES:
        return f"{place}: {NO_SIZES}"
    if name not in OPTIONS:
        return f"{place}: unknown option {name!r}{nearest(str(name), OPTIONS)}: see `loraprune prune --help`"
    return None


def _typed(place: str, name: str, values: Iterable[Any], problems: list[str]) -> Iterator[Any]:
    """Yield the valid values of an option, parsed as on the command line."""
    for value in values:
        if value is None and OPTIONS[name].default is not None:
            problems.append(f"{place}: a value is needed, not null")
            continue
        try:
            typed = read_value(_hints()[name], value)
        except WrongValueError as error:
            problems.append(f"{place}{error}")
            continue
        if name == "sparsity" and isinstance(typed, int):
            problems.append(f"{place}: {in_base_60(typed)}")
        else:
            yield typed


@cache
def _hints() -> dict[str, Any]:
    """Return the type of every option."""
    return get_type_hints(PruneConfig)


def _cell(labels: Mapping[str, str], options: Mapping[str, Any], baselines: Sequence[str]) -> Cell:
    """Return a pruning cell with checked options."""
    folder = Path(options["output"]) / CELLS / digest("prune", options)
    config = PruneConfig(**{**options, "output": str(folder), "overwrite": True})
    return Cell("prune", labels, config, digest(baselines[0], _training_options(config)) if baselines else None)


def _training_options(config: PruneConfig) -> dict[str, Any]:
    """Return the options of a pruning run that fine-tuning also has."""
    return {field.name: getattr(config, field.name) for field in fields(FinetuneConfig)}


def _dense(job: str, pruned: Cell, named: Iterable[str]) -> Cell:
    """Return the baseline of a pruning cell; `named` are the options that its name contains."""
    assert isinstance(pruned.config, PruneConfig)
    options = _training_options(pruned.config)
    folder = Path(pruned.config.output).parent / digest(job, options)
    labels = {RUN: job} | {name: _words(name, options[name]) for name in named if name in options}
    return Cell(job, labels, BASELINES[job](**{**options, "output": str(folder)}), None)


def _words(name: str, value: Any) -> str:
    """Return a value as text, with the name of the option unless the value is a string."""
    return value if isinstance(value, str) else f"{name} {str(value).lower()}"
