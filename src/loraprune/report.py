"""What a run leaves beside the model: report.json, run.yaml, plan.json, scores.safetensors and a model card.

Knows nothing about how anything was measured.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save_file
from torch import Tensor

from loraprune.config import FinetuneConfig, PruneConfig, as_dict
from loraprune.layerwise.modeling_loraprune import TYPE_PREFIX
from loraprune.measured import Measured, compared
from loraprune.plan import Plan
from loraprune.pruner import Pruner
from loraprune.sparsity.sparsifier import Sparsifier
from loraprune.tasks import Task, tasks
from loraprune.verify import Verification

LIBRARIES = ("loraprune", "torch", "transformers", "peft", "accelerate", "datasets", "safetensors")


@dataclass(slots=True)
class Training:
    """What the training took and how it went."""

    steps: int
    seconds: float
    """training with scoring, slicing and merging, without loading and judging"""
    peak_memory_bytes: int
    curve: Sequence[Mapping[str, int | float]]
    removals: Sequence[Mapping[str, int | float]]
    skipped: Sequence[Mapping[str, int | str]]
    """step and reason of those without an update, as something in them was no number"""
    protocol: Mapping[str, object]
    new: Sequence[str] = ()
    """modules that started anew and were trained whole, not by LoRA: what was dense knew nothing by them"""


@dataclass(frozen=True, slots=True)
class Quality:
    """How good the model is at its task before and after."""

    task: Task
    dense: Measured
    pruned: Measured


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
    }
    dense, pruned = parameters
    values["parameters"] = {"dense": dense, "pruned": pruned}
    if isinstance(pruner, Sparsifier):
        values |= pruner.figures()
        weights, zeros = values["sparsity"]["weights"], values["sparsity"]["zeros"]
        values["parameters"] |= {"prunable_dense": weights, "prunable_pruned": weights - zeros}
    elif pruner:
        budget, counts = pruner.space.budget, pruner.counts()
        values["ratio_requested"] = config.ratio if isinstance(config, PruneConfig) else 0.0
        if isinstance(config, PruneConfig) and (config.parameters is not None or config.has_dimensions):
            names = ("parameters", "heads", "ffn", "heads_ratio", "ffn_ratio")
            values["ratio_requested"] = None
            values["target"] = {name: getattr(config, name) for name in names}
        values["ratio_reached"] = budget.ratio(counts)
        values["parameters"] |= {"prunable_dense": budget.prunable, "prunable_pruned": budget.kept(counts)}
        values["ratio_of_whole_model"] = 1 - pruned / dense
        values["units"] = {name: {"dense": plan.units[name], "kept": len(kept)} for name, kept in plan.kept.items()}
    values |= {
        "metric": quality.pruned.metric,
        quality.pruned.metric: compared(quality.dense, quality.pruned),
        "verification": {
            "masked_vs_sliced": verification.masked_vs_sliced,
            "sliced_vs_reloaded": verification.sliced_vs_reloaded,
            "tolerance": verification.tolerance,
        },
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
        "removals": list(training.removals),
        "skipped_steps": list(training.skipped),
        "versions": {name: version(name) for name in LIBRARIES} | {"python": platform.python_version()},
    }
    return Report(values, plan)


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
    (folder / "README.md").write_text(model_card(report.values, config), encoding="utf-8")
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


def model_card(values: Mapping[str, Any], config: PruneConfig | FinetuneConfig) -> str:
    """Return the README.md of an output folder."""
    parameters, metric = values["parameters"], values["metric"]
    head = tasks.get(values["task"]).head
    rows = [
        ("parameters", f"{parameters['dense']:,}", f"{parameters['pruned']:,}"),
        (metric, f"{values[metric]['dense']:.3f}", f"{values[metric]['pruned']:.3f}"),
    ]
    if "ratio_reached" in values:
        what = (
            "ratio of prunable weights that are zero"
            if "sparsity" in values
            else "ratio of prunable parameters removed"
        )
        rows.insert(1, (what, "0", f"{values['ratio_reached']:.4f}"))
    flag = ", trust_remote_code=True" if values["saved_as"]["model_type"].startswith(TYPE_PREFIX) else ""
    table = "\n".join(f"| {name} | {dense} | {pruned} |" for name, dense, pruned in rows)
    return (
        "---\nlibrary_name: transformers\ntags: [loraprune, pruned]\n---\n\n"
        f"# {Path(config.output).name}\n\n"
        f"Made from `{config.model}` by `loraprune {values['job']}` on `{config.data}` ({values['steps']} steps, seed {config.seed}).\n"
        "The licence of the base model applies.\n\n"
        f"| | dense | this model |\n|---|---|---|\n{table}\n\n"
        "Measured on data held out of the training; the protocol stands in report.json.\n\n"
        f"Load it with {values['saved_as']['load']}:\n\n"
        f"```python\nfrom transformers import {head}\n\n"
        f'model = {head}.from_pretrained("path/of/this/folder"{flag})\n```\n\n'
        "To repeat the run: `loraprune " + values["job"] + " --config run.yaml --output another/folder`.\n"
    )
