"""Assemble the report of a run from its parts, or from the reports of its rounds."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from loraprune.config.training import FinetuneConfig, PruneConfig
from loraprune.evaluation.measurement import Compared, Measured
from loraprune.evaluation.tasks import Task
from loraprune.models.layerwise.modeling_loraprune import TYPE_PREFIX
from loraprune.plan import Plan
from loraprune.pruning.removed import Removed, Units
from loraprune.pruning.verify import Verification
from loraprune.reporting.report import Report, Shown
from loraprune.runtime import launch
from loraprune.training.record import Training

LIBRARIES = ("loraprune", "torch", "transformers", "peft", "accelerate", "datasets", "safetensors")


@dataclass(frozen=True, slots=True)
class Quality:
    """Evaluation of the model before and after the run."""

    task: Task
    dense: Measured
    pruned: Measured
    shown: Shown


def make_report(
    config: PruneConfig | FinetuneConfig,
    *,
    quality: Quality,
    training: Training,
    removed: Removed | None,
    verification: Verification,
    parameters: tuple[int, int],
    plan: Plan,
    seconds: float,
) -> Report:
    """Assemble the figures of a run; `parameters` counts those of the whole dense and of the whole pruned model."""
    task = quality.task
    return Report(
        job=config.job, model=config.model, data=config.data, task=task.name, processes=launch.count(),
        parameters=parameters, removed=removed, metric=quality.pruned.metric, quality=Compared.of(quality.dense, quality.pruned),
        verification=verification, training=training, total_seconds=seconds,
        seed=config.seed, load=how_to_load(verification.saved_as, task.head),
        shown=quality.shown, plan=plan, finished=datetime.now(UTC).isoformat(timespec="seconds"), folder=config.output,
        versions={name: version(name) for name in LIBRARIES} | {"python": platform.python_version()},
    )  # fmt: skip


def how_to_load(model_type: str, head: str) -> str:
    """Return one sentence that says how to load an output folder."""
    if not model_type.startswith(TYPE_PREFIX):
        return f"{head}.from_pretrained(folder) in plain transformers, without a flag"
    return (
        f"loraprune.from_pretrained(folder), or {head}.from_pretrained(folder, trust_remote_code=True) in "
        "plain transformers: layers of different widths need the modelling code in the folder"
    )


def report_of_rounds(
    config: PruneConfig, reports: Sequence[Report], plan: Plan, *, reached: Mapping[str, Any]
) -> Report:
    """Return the report of a run from those of its rounds: steps are counted through, and dense figures are the first round's."""
    first, last = reports[0], reports[-1]
    assert first.removed is not None
    assert last.removed is not None
    before = first.removed.units or {}
    units: dict[str, Units] = {name: {**counts, "kept": len(plan.kept[name])} for name, counts in before.items()}
    removed = replace(
        last.removed, prunable_dense=first.removed.prunable_dense, units=units,
        ratio_requested=config.ratio if config.has_ratio else None,
        ratio_reached=1 - last.removed.prunable_pruned / first.removed.prunable_dense,
        target=config.other_targets, reached=reached,
    )  # fmt: skip
    trained = [report.training for report in reports]
    training = replace(
        last.training, trainable=first.training.trainable, new=first.training.new,
        steps=sum(one.steps for one in trained), seconds=sum(one.seconds for one in trained),
        peak_memory_bytes=max(one.peak_memory_bytes for one in trained),
        curve=list(_counted_on(reports, "curve")), skipped=list(_counted_on(reports, "skipped")), removals=list(_removals(reports)),
    )  # fmt: skip
    return replace(
        last, plan=plan, folder=config.output, model=config.model, parameters=(first.parameters[0], last.parameters[1]),
        removed=removed, training=training, quality=last.quality.with_dense(first.quality),
        total_seconds=sum(report.total_seconds for report in reports),
    )  # fmt: skip


def _counted_on(reports: Sequence[Report], name: str) -> Iterator[Mapping[str, Any]]:
    """Yield the entries of all rounds, with steps counted over the whole run."""
    steps = 0
    for report in reports:
        for entry in getattr(report.training, name):
            yield {**entry, "step": entry["step"] + steps}
        steps += report.training.steps


def _removals(reports: Sequence[Report]) -> Iterator[Mapping[str, Any]]:
    """Yield the removals of all rounds, with ratios relative to the dense model."""
    assert reports[0].removed is not None
    left, dense = 1.0, reports[0].removed.prunable_dense
    entries = iter(_counted_on(reports, "removals"))
    for report in reports:
        assert report.removed is not None
        for _ in report.training.removals:
            entry = next(entries)
            yield {**entry, "ratio": 1 - left * (1 - entry["ratio"])}
        left = report.removed.prunable_pruned / dense
