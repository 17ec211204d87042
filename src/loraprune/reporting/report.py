"""What a run leaves beside the model: report.json, run.yaml, plan.json, scores.safetensors and a model card.

Knows nothing about how anything was measured.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save_file
from torch import Tensor

from loraprune.config.training import FinetuneConfig, PruneConfig, as_dict
from loraprune.evaluation.measurement import Measured, compared
from loraprune.evaluation.tasks import Task
from loraprune.models.layerwise.modeling_loraprune import TYPE_PREFIX
from loraprune.plan import Plan
from loraprune.pruning.pruner import Pruner
from loraprune.pruning.sparsity.sparsifier import Sparsifier
from loraprune.pruning.verify import Verification
from loraprune.reporting.card import model_card
from loraprune.runtime import launch
from loraprune.training.record import Training

LIBRARIES = ("loraprune", "torch", "transformers", "peft", "accelerate", "datasets", "safetensors")


@dataclass(frozen=True, slots=True)
class Quality:
    """How good the model is at its task before and after."""

    task: Task
    dense: Measured
    pruned: Measured
    shown: Mapping[str, Any] = field(default_factory=dict)
    """what a `Showcase` has to show: `examples` and `speed`"""


@dataclass(frozen=True, slots=True)
class Report:
    """A run's report.json, and the plan that belongs to it."""

    values: Mapping[str, Any]
    plan: Plan


def make_report(
    config: PruneConfig | FinetuneConfig,
    *,
    quality: Quality,
    training: Training,
    plan: Plan,
    pruner: Pruner | Sparsifier | None,
    verification: Verification,
    parameters: tuple[int, int],
    began: float,
) -> Report:
    """Put all figures of a run together; `parameters` are those of the whole dense and pruned model."""
    values: dict[str, Any] = {
        "format": 1,
        "job": "prune" if pruner else "finetune",
        "model": config.model,
        "data": config.data,
        "task": quality.task.name,
        "processes": launch.count(),
    }
    dense, pruned = parameters
    values["parameters"] = {"dense": dense, "pruned": pruned, "trainable": training.trainable}
    if isinstance(pruner, Sparsifier):
        values |= pruner.figures()
        weights, zeros = values["sparsity"]["weights"], values["sparsity"]["zeros"]
        values["parameters"] |= {"prunable_dense": weights, "prunable_pruned": weights - zeros}
    elif pruner:
        budget, counts = pruner.space.budget, pruner.counts()
        values |= _target(config)
        values["ratio_reached"] = budget.ratio(counts)
        values["parameters"] |= {"prunable_dense": budget.prunable, "prunable_pruned": budget.kept(counts)}
        values["ratio_of_whole_model"] = 1 - pruned / dense
        values["units"] = _units(plan)
        values["recovery"] = [recovery.to_json() for recovery in pruner.recoveries]
    values |= {
        "metric": quality.pruned.metric,
        quality.pruned.metric: compared(quality.dense, quality.pruned),
        "verification": {name: value for name, value in asdict(verification).items() if name != "saved_as"},
        "saved_as": {
            "model_type": verification.saved_as,
            "load": how_to_load(verification.saved_as, quality.task.head),
        },
        "steps": training.steps,
        "wall_seconds": training.seconds,
        "total_seconds": time.perf_counter() - began,
        "peak_memory_bytes": training.peak_memory_bytes,
        "seed": config.seed,
        "training_data": dict(training.protocol),
        "trained_whole": list(training.new),
        "curve": list(training.curve),
        "evaluations": list(training.evaluations),
        "kept_step": training.kept_step,
        "removals": list(training.removals),
        "skipped_steps": list(training.skipped),
        "versions": {name: version(name) for name in LIBRARIES} | {"python": platform.python_version()},
        **quality.shown,
    }
    return Report(values, plan)


def report_of_rounds(config: PruneConfig, reports: Sequence[Mapping[str, Any]], plan: Plan) -> dict[str, Any]:
    """Return the report of a run in rounds from theirs: steps count on, and what is dense is so in the first one."""
    first, last = reports[0], reports[-1]
    values = {**last, "model": config.model, "trained_whole": first["trained_whole"], **_target(config)}
    parameters = {**first["parameters"], **{name: last["parameters"][name] for name in ("pruned", "prunable_pruned")}}
    metric = last["metric"]
    values |= {
        "parameters": parameters,
        "ratio_reached": 1 - parameters["prunable_pruned"] / parameters["prunable_dense"],
        "ratio_of_whole_model": 1 - parameters["pruned"] / parameters["dense"],
        "units": _units(plan),
        metric: _with_dense(first[metric], last[metric]),
        "verification": dict(last["verification"]),
        "peak_memory_bytes": max(report["peak_memory_bytes"] for report in reports),
    }
    values |= {name: sum(report[name] for report in reports) for name in ("steps", "wall_seconds", "total_seconds")}
    steps, left = 0, 1.0
    lists: dict[str, list[dict[str, Any]]] = {"curve": [], "removals": [], "skipped_steps": []}
    for report in reports:
        removals = [{**entry, "ratio": 1 - left * (1 - entry["ratio"])} for entry in report["removals"]]
        for name, entries in lists.items():
            entries += [
                {**entry, "step": entry["step"] + steps} for entry in (removals if name == "removals" else report[name])
            ]
        steps += report["steps"]
        left = report["parameters"]["prunable_pruned"] / parameters["prunable_dense"]
    return values | lists


def _target(config: PruneConfig | FinetuneConfig) -> dict[str, Any]:
    """Return the entries that say what was asked for."""
    if not isinstance(config, PruneConfig):
        return {"ratio_requested": 0.0}
    if config.parameters is None and not config.has_dimensions:
        return {"ratio_requested": config.ratio}
    names = ("parameters", "heads", "ffn", "heads_ratio", "ffn_ratio")
    return {"ratio_requested": None, "target": {name: getattr(config, name) for name in names}}


def _units(plan: Plan) -> dict[str, dict[str, int]]:
    return {name: {"dense": plan.units[name], "kept": len(kept)} for name, kept in plan.kept.items()}


def _with_dense(first: Mapping[str, Any], last: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the last round measured, with what the first one did on the dense model."""
    both = {name: value for name, value in last.items() if isinstance(value, Mapping) and "dense" in value}
    inner = {name: {**value, "dense": first[name]["dense"]} for name, value in both.items()}
    return {**last, "dense": first["dense"], **inner}


def write_folder(
    folder: Path,
    report: Report,
    config: PruneConfig | FinetuneConfig,
    *,
    scores: Mapping[str, Tensor] | None,
    history: Mapping[str, Tensor] | None = None,
) -> None:
    """Write everything but the model itself into an output folder."""
    (folder / "report.json").write_text(json.dumps(report.values, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    (folder / "run.yaml").write_text(yaml.safe_dump(as_dict(config), sort_keys=False), encoding="utf-8")
    (folder / "README.md").write_text(
        model_card(report.values, output=config.output, seed=config.seed), encoding="utf-8"
    )
    if scores is not None:
        (folder / "plan.json").write_text(report.plan.to_json() + "\n", encoding="utf-8")
        save_file(dict(scores), folder / "scores.safetensors")
    if history:
        save_file(dict(history), folder / "scores_history.safetensors")


def how_to_load(model_type: str, head: str) -> str:
    """Say in one sentence what loads an output folder."""
    if not model_type.startswith(TYPE_PREFIX):
        return f"{head}.from_pretrained(folder) of plain transformers, without a flag"
    return (
        f"loraprune.from_pretrained(folder), or {head}.from_pretrained(folder, trust_remote_code=True) of "
        "plain transformers, as the layers' widths need the modelling code in the folder"
    )
