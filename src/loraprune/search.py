"""The largest cut within a limit of loss (`--max-drop`): whole runs at several ratios, of which the best becomes the result.

    OUTPUT.partial/tries/dense/         what is left of the dense model's run with the same options
    OUTPUT.partial/tries/0.14/          the folder that a try left; its weights go when there is a better one
    OUTPUT.partial/tries/0.2.partial/   the workspace of the try that is not finished

Knows nothing about training: whoever calls says how one run is done.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

from loraprune.config.training import FinetuneConfig, PruneConfig, as_dict
from loraprune.errors import ConfigError, PlanError
from loraprune.evaluation.apart import APART, CHOICE
from loraprune.evaluation.measurement import relative_drop
from loraprune.evaluation.tasks import choose_task
from loraprune.models.opening import load_config
from loraprune.pruning.ladder import ladder, next_rung
from loraprune.pruning.target import Target
from loraprune.reporting.html.page import write_page
from loraprune.reporting.report import Report, read_report
from loraprune.reporting.search import Search, Try, shape_of, why
from loraprune.reporting.write import write_folder
from loraprune.runtime.device import choose_device
from loraprune.runtime.output import PARTIAL
from loraprune.runtime.processes import first_alone, joined
from loraprune.runtime.run_file import write_run
from loraprune.runtime.workspace import TRIES, has_checkpoints, new_folder, workspace_of
from loraprune.runtime.written import KEPT, RECORD
from loraprune.training.resume.run import is_finished
from loraprune.training.setup import check_goal

LIGHT = ("report.json", "plan.json", "run.yaml")
"""files that stay of a try that is not the best"""

Run: TypeAlias = Callable[[PruneConfig | FinetuneConfig], Report]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TryConfig(PruneConfig):
    """The options of one try."""

    held_out_apart: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class DenseConfig(FinetuneConfig):
    """The options of the dense model's run."""

    held_out_apart: ClassVar[bool] = True


class Tries:
    """The runs of a search. A finished one is not repeated after an interruption."""

    def __init__(self, config: PruneConfig, folder: Path, run: Run) -> None:
        self.config, self.folder, self.run = config, folder, run
        self.dense: Report | None = None
        """of the dense model with the same training; None without training"""
        self.reports: dict[float, Report] = {}
        """ratio -> report"""
        self._belongs = config.resume
        """whether what is in the folder belongs to this search"""

    def collect(self) -> None:
        """Read the tries that an earlier attempt finished.

        Raises:
            ConfigError: if they have other options.
        """
        places = [place for place in self.folder.glob("0.*") if place.suffix != PARTIAL] if self._belongs else []
        for place in sorted(places):
            if is_finished(self.options(float(place.name)), place):
                self.reports[float(place.name)] = read_report(place)

    def tune_dense(self) -> None:
        """Train the dense model as the tries are trained, so that losses show what was removed and not what was learned."""
        if self.config.steps != 0:
            own = {one.name: getattr(self.config, one.name) for one in fields(FinetuneConfig)}
            self.dense = self._report(DenseConfig(**own | self._place("dense") | {"html": False}))

    def attempt(self, ratio: float) -> None:
        """Do the run of a ratio."""
        logger.info("try %d of at most %d: ratio %g", len(self.reports) + 1, self.config.tries, ratio)
        self.reports[ratio] = self._report(self.options(ratio))
        one = self.figures(ratio)
        logger.info(
            "ratio %g loses %.2f %% on the held-out rows that choose: %s the limit of %g %%",
            ratio, 100 * one.drop, "within" if one.holds else "above", 100 * self.limit,
        )  # fmt: skip
        first_alone(self._lighten)

    def restore(self, ratio: float) -> None:
        """Repeat the run of a ratio if its weights are gone, as they are if an earlier attempt had a smaller limit."""
        place = self.folder / f"{ratio:g}"
        if not (place / RECORD).is_file():
            logger.info("ratio %g is repeated: only the weights of the best try so far are kept", ratio)
            self.run(self.options(ratio))
            first_alone(lambda: remove_kept(place))

    @property
    def limit(self) -> float:
        """Return the largest fraction of quality that may be lost."""
        assert self.config.max_drop is not None
        return self.config.max_drop

    def reference(self, report: Report) -> tuple[float, float]:
        """Return the metric that a try is compared with, on the rows that choose and on the others.

        Raises:
            PlanError: if a score is zero or below, of which no fraction can be lost.
            ConfigError: if the dense model's head is untrained.
        """
        if self.dense is None and report.has_new_head:
            raise ConfigError(
                f"{self.config.drop_given} --steps 0: the model's head is untrained, so it has no quality to lose; give --steps"
            )
        quality = self.dense.quality if self.dense else report.quality
        which = "pruned" if self.dense else "dense"
        choice, value = quality.others[CHOICE][which], getattr(quality, which)
        if min(choice, value) <= 0:
            raise PlanError(
                f"{self.config.drop_given}: the {report.metric} of the dense model is {min(choice, value):.4g} on held-out rows, of "
                "which no fraction can be lost; train longer, or give --ratio"
            )
        return choice, value

    def figures(self, ratio: float) -> Try:
        """Return what a try is chosen by."""
        report = self.reports[ratio]
        value = report.quality.others[CHOICE]["pruned"]
        drop = relative_drop(report.metric, self.reference(report)[0], value)
        removed = report.removed
        assert removed is not None
        assert removed.units is not None
        return Try(
            ratio, removed.ratio_reached, report.parameters[1], shape_of(removed.units), value, drop, drop <= self.limit
        )

    def all_figures(self) -> list[Try]:
        """Return what all tries are chosen by, by ratio."""
        return [self.figures(ratio) for ratio in sorted(self.reports)]

    def best(self) -> Try | None:
        """Return the largest cut that holds the limit; None if there is none yet."""
        return max((one for one in self.all_figures() if one.holds), key=lambda one: one.ratio, default=None)

    def next_ratio(self, rungs: list[float]) -> float | None:
        """Return the ratio to try next; None at the end."""
        losses = {one.ratio: math.log1p(max(one.drop, 0.0)) for one in self.all_figures()}
        return next_rung(rungs, losses, math.log1p(self.limit), left=self.config.tries - len(losses))

    def options(self, ratio: float) -> TryConfig:
        """Return the options of the run of a ratio."""
        own = {one.name: getattr(self.config, one.name) for one in fields(PruneConfig)}
        changes = {"ratio": ratio, "max_drop": None, "tries": PruneConfig.tries}
        return TryConfig(**own | changes | self._place(f"{ratio:g}"))

    def _place(self, name: str) -> dict[str, Any]:
        """Return the options that say where a run writes."""
        place = self.folder / name
        resume = self._belongs and has_checkpoints(workspace_of(place))
        return {"output": str(place), "overwrite": True, "resume": resume}

    def _report(self, options: TryConfig | DenseConfig) -> Report:
        """Do a run that is not finished yet, and return its report as it was written."""
        place = Path(options.output)
        if not (self._belongs and is_finished(options, place)):
            self.run(options)
            first_alone(lambda: self._tidy(place))
            self._belongs = True
        return read_report(place)

    def _tidy(self, place: Path) -> None:
        """Remove what is left of other runs: of an earlier search, once this one replaces it, or of a try that is not due any more."""
        for path in list(self.folder.iterdir()):
            if path != place and (path.suffix == PARTIAL or not self._belongs):
                shutil.rmtree(path)
        write_run(self.folder.parent, self.config.job, as_dict(self.config))

    def _lighten(self) -> None:
        """Remove the weights of all runs but the best one."""
        best = self.best()
        for place in self.folder.iterdir():
            if place.suffix == PARTIAL or (best and place.name == f"{best.ratio:g}"):
                continue
            (place / RECORD).unlink(missing_ok=True)  # first: what has it is whole
            for path in place.iterdir():
                if path.name not in LIGHT:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()


def remove_kept(place: Path) -> None:
    """Remove the reports of a try that its repetition kept beside its own."""
    for path in place.glob(f"*{KEPT}"):
        path.unlink()


def prune_within(config: PruneConfig, run: Run) -> Report:
    """Find the largest cut whose loss of quality stays within `config.max_drop`, and write the folder of its run.

    Raises:
        PlanError: if even the smallest cut loses more; its report is kept in the workspace.
        LoraPruneError: for anything wrong with model, data or options; nothing is written then.
    """
    with (
        joined("prune", config.device),
        new_folder(Path(config.output), overwrite=config.overwrite, resume=config.resume, costly=True) as folder,
    ):
        tries = Tries(config, folder.parent / TRIES, run)
        tries.collect()
        if tries.reports or not has_checkpoints(folder.parent):  # else another run's options may be needed to resume it
            first_alone(lambda: write_run(folder.parent, config.job, as_dict(config)))
        rungs = find_rungs(config, tries)
        tries.tune_dense()
        while (ratio := tries.next_ratio(rungs)) is not None:
            tries.attempt(ratio)
        best = tries.best()
        if best is None:
            raise nothing_holds(tries)
        tries.restore(best.ratio)
        return first_alone(lambda: _write_best(config, folder, tries, best, rungs))


def find_rungs(config: PruneConfig, tries: Tries) -> list[float]:
    """Return the ratios that give different shapes, without reading weights.

    Raises:
        PlanError: if there are none.
    """
    original = load_config(config.model, trust_remote_code=config.trust_remote_code)
    task = choose_task(original, config.task, data=config.data, columns=config.roles())
    nothing = replace(tries.options(0.01), ratio=0.0)  # which every model can reach
    _, goal = check_goal(nothing, original, task, None, device=choose_device(config.device))
    assert isinstance(goal, Target)
    rungs = ladder(goal.space, nothing.pruning())
    if not rungs:
        raise PlanError(f"{config.drop_given}: no unit of this model can be removed; `loraprune inspect` shows them")
    return rungs


def nothing_holds(tries: Tries) -> PlanError:
    """Return the error of a search whose smallest cut loses too much."""
    smallest, config = tries.all_figures()[0], tries.config
    report = tries.reports[smallest.ratio]
    choice, _ = tries.reference(report)
    metric, dense = report.metric.replace("_", " "), "tuned dense model" if tries.dense else "dense model"
    finer = f", a finer --round than {config.round}" if config.round > 1 else ""
    return PlanError(
        f"{config.drop_given}: no cut stays within it: the smallest one, ratio {smallest.ratio_reached:.3g} ({smallest.parameters:,} of "
        f"{report.parameters[0]:,} parameters), loses {100 * smallest.drop:.2f} % ({metric} {smallest.value:.4g}, {dense} "
        f"{choice:.4g}); give a larger --max-drop with --resume, which reads the tries in {tries.folder}{finer}, or train longer"
    )


def _write_best(config: PruneConfig, folder: Path, tries: Tries, best: Try, rungs: list[float]) -> Report:
    """Write the folder of the best try, with a report about the whole search."""
    place = tries.folder / f"{best.ratio:g}"
    shutil.copytree(place, folder, dirs_exist_ok=True)
    report = read_report(place)
    choice, value = tries.reference(report)
    reference = "the dense model tuned alike" if tries.dense else "the dense model"
    found = Search(
        max_drop=tries.limit, tuned=tries.dense is not None, reference_of_choice=choice, reference=value,
        tries=tuple(tries.all_figures()), ratio=best.ratio, drop=relative_drop(report.metric, value, report.quality.pruned),
        apart=bool(report.quality.protocol[APART]), reason=why(tries.all_figures(), best, rungs, reference=reference),
    )  # fmt: skip
    if found.drop > found.max_drop or not found.apart:
        logger.warning("%s: %s", config.drop_given, found.outcome)
    assert report.removed is not None
    runs = [*tries.reports.values(), *([tries.dense] if tries.dense else [])]
    report = replace(
        report, folder=config.output, search=found, total_seconds=sum(one.total_seconds for one in runs),
        removed=replace(report.removed, ratio_requested=None, target={"max_drop": tries.limit}),
    )  # fmt: skip
    write_folder(folder, report, config, scores=None)
    if config.html:
        write_page(folder)
    return report
