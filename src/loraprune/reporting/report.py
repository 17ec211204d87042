"""The report of a run: the content of report.json, read by the page, the card and the tables.

Knows nothing about how anything was measured.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from loraprune.evaluation.measurement import PERPLEXITY, Compared
from loraprune.models.layerwise.modeling_loraprune import TYPE_PREFIX
from loraprune.plan import Plan
from loraprune.pruning.removed import Removed, Zeros
from loraprune.pruning.verify import Verification
from loraprune.reporting.search import Search
from loraprune.reporting.sizes import Sizes
from loraprune.reporting.verdict import Verdict, find_verdict
from loraprune.training.record import Training

NAME = "report.json"
OLDER: Mapping[str, Any] = {"precision": None, "adapted_vs_merged": None, "rounding": None, "noise": {}, "failed": ()}
"""entries about checks that reports of the first versions lack"""

Part = TypeVar("Part")


@dataclass(frozen=True, slots=True)
class Shown:
    """Examples and timings for the page, where they were requested."""

    examples: Sequence[Mapping[str, str]] | None = None
    """prompts with the continuations of the dense and the pruned model"""
    speed: Mapping[str, Any] | None = None
    """size and speed of both models, in the form of `loraprune benchmark --json`"""
    completions: Mapping[str, str] | None = None
    """the demo's prompt, continued by both models"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A finished run."""

    job: str
    """prune or finetune"""
    model: str
    data: str
    task: str
    processes: int
    parameters: tuple[int, int]
    """of the whole dense model and of the whole pruned model"""
    removed: Removed | None
    """None for plain fine-tuning"""
    metric: str
    quality: Compared
    verification: Verification
    training: Training
    total_seconds: float
    seed: int
    versions: Mapping[str, str]
    load: str
    """one sentence that says how to load the folder"""
    shown: Shown = field(default_factory=Shown)
    plan: Plan | None = None
    """the units that are kept, as in plan.json"""
    vocabulary: Mapping[str, Any] | None = None
    """what a cut of the vocabulary kept, see `loraprune.training.vocabulary.VocabularyCut`; None without one"""
    search: Search | None = None
    """the runs that --max-drop tried; None without it"""
    sizes: Sizes | None = None
    """all sizes of --sizes, in the report that the run returns; the folders of the sizes have sizes.json beside them instead"""
    finished: str | None = None
    """when, as ISO 8601 in UTC; None in a report of the first versions"""
    folder: str | None = None
    """where the model and this report are, as the run was given it or as it was read"""

    @property
    def has_new_head(self) -> bool:
        """Return whether the head was untrained, so that the dense figure does not show what pruning costs."""
        return bool(self.training.new)

    @property
    def verdict(self) -> Verdict:
        """Return whether the model is good enough to use, and why."""
        quality = self.quality
        return find_verdict(self.job, self.metric, quality.dense, quality.pruned, new_head=self.has_new_head)

    @property
    def values(self) -> dict[str, Any]:
        """Return the content of report.json."""
        training, dense, pruned = self.training, *self.parameters
        parameters = {"dense": dense, "pruned": pruned, "trainable": training.trainable}
        found: dict[str, Any] = {
            "format": 1, "finished": self.finished, "job": self.job, "model": self.model, "data": self.data, "task": self.task,
            "processes": self.processes, "parameters": parameters,
        }  # fmt: skip
        if removed := self.removed:
            parameters |= {"prunable_dense": removed.prunable_dense, "prunable_pruned": removed.prunable_pruned}
            found |= {"ratio_requested": removed.ratio_requested, "ratio_reached": removed.ratio_reached}
            found |= {"target": dict(removed.target)} if removed.target else {}
            found |= {"reached": dict(removed.reached)} if removed.reached else {}
            if removed.sparsity:
                found["sparsity"] = asdict(removed.sparsity)
            else:
                found |= {
                    "ratio_of_whole_model": 1 - pruned / dense,
                    "units": removed.units,
                    "recovery": list(removed.recovery),
                }
                found |= {"shapes": dict(removed.shapes)} if removed.shapes else {}
        found |= {"vocabulary": dict(self.vocabulary)} if self.vocabulary else {}
        found |= {"search": asdict(self.search)} if self.search else {}
        found |= {"sizes": asdict(self.sizes)} if self.sizes else {}
        return found | {
            "metric": self.metric,
            self.metric: self.quality.to_json(),
            "verdict": asdict(self.verdict),
            "verification": _without(asdict(self.verification), "saved_as"),
            "saved_as": {"model_type": self.verification.saved_as, "load": self.load},
            "steps": training.steps, "wall_seconds": training.seconds, "total_seconds": self.total_seconds,
            "peak_memory_bytes": training.peak_memory_bytes, "seed": self.seed, "training_data": dict(training.protocol),
            "trained_whole": list(training.new), "curve": list(training.curve), "evaluations": list(training.evaluations),
            "kept_step": training.kept_step, "removals": list(training.removals), "skipped_steps": list(training.skipped),
            "versions": dict(self.versions),
            **{name: value for name, value in asdict(self.shown).items() if value is not None},
        }  # fmt: skip

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Report:
        """Return the report in the content of a report.json; entries that older versions did not write are empty."""
        parameters, saved, metric = values["parameters"], values["saved_as"], values.get("metric", PERPLEXITY)
        checks = {**OLDER, **values["verification"], "saved_as": saved["model_type"]}
        removed = None
        if "ratio_reached" in values:
            known = {**parameters, **values}
            zeros = _make(Zeros, values["sparsity"]) if "sparsity" in values else None
            removed = _make(Removed, known | {"sparsity": zeros, "recovery": values.get("recovery", ())})
        training = {
            **values, "seconds": values["wall_seconds"], "skipped": values.get("skipped_steps", ()),
            "protocol": values.get("training_data", {}), "trainable": parameters.get("trainable", 0),
            "new": values.get("trained_whole", ()), "curve": values.get("curve", ()), "removals": values.get("removals", ()),
            "evaluations": values.get("evaluations", ()),
        }  # fmt: skip
        return cls(
            job=values["job"], model=values["model"], data=values["data"], task=values.get("task", "causal-lm"),
            load=saved["load"], processes=values.get("processes", 1), parameters=(parameters["dense"], parameters["pruned"]),
            removed=removed, metric=metric, quality=Compared.from_json(values[metric]),
            verification=_make(Verification, checks | {"failed": tuple(checks["failed"])}),
            training=_make(Training, training), total_seconds=values["total_seconds"], seed=values["seed"],
            versions=values["versions"], shown=_make(Shown, values), finished=values.get("finished"),
            vocabulary=values.get("vocabulary"),
            search=Search.from_json(values["search"]) if "search" in values else None,
            sizes=Sizes.from_json(values["sizes"]) if "sizes" in values else None,
        )  # fmt: skip

    @property
    def needs_code(self) -> bool:
        """Return whether plain transformers needs the modelling code in the folder."""
        return self.verification.saved_as.startswith(TYPE_PREFIX)


def read_report(folder: Path) -> Report:
    """Read report.json, and plan.json where there is one.

    Raises:
        ValueError: if the report is not JSON.
        CheckpointError: if the plan is damaged.
    """
    report = Report.from_json(json.loads((folder / NAME).read_text(encoding="utf-8")))
    plan = Plan.read(folder) if (folder / "plan.json").is_file() else None
    return replace(report, plan=plan, folder=str(folder))


def _make(kind: type[Part], values: Mapping[str, Any]) -> Part:
    """Return a dataclass filled from the values named like its fields."""
    return kind(**{one.name: values[one.name] for one in fields(kind) if one.name in values})  # type: ignore[arg-type]


def _without(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != name}
