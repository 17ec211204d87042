"""Options of the commands that look at models, and of those that start runs.

Knows nothing about torch, so that `--help` answers at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from loraprune.config.base import (
    BatchOptions,
    Dtype,
    MachineOptions,
    ModelOptions,
    Options,
    QuantizeOptions,
    at_least,
    failed,
)
from loraprune.config.columns import ColumnOptions
from loraprune.config.pruning import LoRAPruneConfig
from loraprune.errors import nearest
from loraprune.runtime.output import unwritable

ZERO_SHOT = ("boolq", "piqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa")
"""the seven tasks of the paper, under their names in lm-eval"""
TIMED_FORMATS = ("onnx", "gguf")
"""formats of `export` for which there is a program to time"""
KNOWN = "known"
"""in place of a model: all that the package knows the shapes of"""


@dataclass(frozen=True, kw_only=True)
class InspectConfig(ModelOptions):
    """Show a model's family, groups, units and parameters a unit, or say why it cannot be pruned."""


@dataclass(frozen=True, kw_only=True)
class PlanConfig(LoRAPruneConfig, QuantizeOptions, BatchOptions, ModelOptions):
    """Predict shapes, parameters, file size, memory and FLOPs of training from the configuration alone."""

    model: str = KNOWN
    """folder, hub id, `demo`, or a well-known model by name, for which nothing is read: llama-7b, llama-13b, llama-30b, llama-65b,
    llama-3-8b, llama-3-70b; `known` stands for all of these, in one table"""
    dtype: Dtype = "bfloat16"
    """precision of the weights while training"""
    accumulate: int = 1
    """micro-batches in an optimiser step"""
    teacher: Literal["none", "copy", "cache"] = "none"
    """as in prune: copy keeps a second model in memory"""
    gpus: int = 1
    """GPUs that train together, each on micro-batches of its own; figures are for every one of them"""
    sharding: Literal["ddp", "fsdp"] = "ddp"
    """with --gpus: every GPU has the whole model (ddp), or a share of its weights (fsdp)"""
    needs_library: ClassVar[bool] = False

    def problems(self) -> list[str]:
        """Return one sentence for every option that is wrong."""
        shapes = f"--sparsity {self.sparsity}: shapes and sizes stay those of the dense model; there is nothing to plan"
        sizes = at_least(("gpus", self.gpus, 1), ("accumulate", self.accumulate, 1))
        return [*super().problems(), *sizes, *failed((self.sparsity is None, shapes))]


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(ModelOptions, ColumnOptions, MachineOptions):
    """Measure how good models are at their task, and causal language models on tasks of lm-eval too, with the protocol recorded."""

    data: list[str] | str | None = None
    """what to measure on: a file, a folder, a hub id, or `stdlib` (its held-out modules); several as [A, B]"""
    against: str | None = None
    """a second model to show beside it, usually the dense one"""
    length: list[int] | int = 512
    """tokens in a window, several as [128, 2048], which the paper's protocols use; the longest is the most that a task's question has"""
    rows: int | None = None
    """windows or rows of each text to measure on at most, from the first on; without it all"""
    batch: int = 8
    """windows, rows or questions at a time"""
    tasks: str | None = None
    """tasks of lm-eval, with commas: `zero-shot` (the seven of the paper), mmlu, or any others with an accuracy"""
    task_data: str | None = None
    """folder with TASK.jsonl (.json, .csv, .parquet) in the columns of the stock tasks; without it the hub is asked"""
    limit: int | None = None
    """documents of each task to ask at most, from the first on"""
    shots: int = 0
    """solved examples before each question; the paper's tasks have none"""
    record: bool = False
    """keep the result in evaluation.json of the model's folder, and draw its report.html again"""

    def lengths(self) -> list[int]:
        """Return all windows."""
        return self.length if isinstance(self.length, list) else [self.length]

    def texts(self) -> list[str]:
        """Return the names of all texts."""
        return self.data if isinstance(self.data, list) else [self.data] if self.data else []

    def task_names(self) -> list[str]:
        """Return the names of all tasks, each once."""
        names = [name.strip() for name in self.tasks.split(",")] if self.tasks is not None else []
        return list(dict.fromkeys(one for name in names for one in (ZERO_SHOT if name == "zero-shot" else (name,))))

    def problems(self) -> list[str]:
        """Return one sentence for every option that is wrong."""
        least = [
            ("batch", self.batch, 1),
            ("shots", self.shots, 0),
            *(("length", length, 2) for length in self.lengths()),
        ]
        least += [(name, value, 1) for name, value in (("limit", self.limit), ("rows", self.rows)) if value is not None]
        checks = [
            (bool(self.texts() or self.task_names()), "nothing to measure: give --data, --tasks or both"),
            (bool(self.lengths()), "--length is empty: name at least one window"),
            (all(self.task_names()), f"--tasks {self.tasks}: a name is empty; write them as piqa,boolq"),
            *(
                (not value or bool(self.tasks), f"--{name} {value}: it is about tasks of lm-eval; give --tasks too")
                for name, value in (("task-data", self.task_data), ("limit", self.limit), ("shots", self.shots))
            ),
            (self.rows is None or bool(self.texts()), f"--rows {self.rows}: it is about --data; give that too"),
            (
                not self.record or (Path(self.model) / "report.json").is_file(),
                f"--record: --model {self.model} is no folder that a run wrote; leave it out, or name one",
            ),
        ]
        return [*super().problems(), *at_least(*least), *failed(*checks)]


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
    unmerged: int | None = None
    """time the model with LoRA of this rank beside it too, as it is before merging: what an adapter costs that is kept apart"""
    formats: str | None = None
    """export the model to these formats in a temporary folder and time them too, on the CPU: onnx (onnxruntime), gguf (llama.cpp), or both
    with a comma; `gguf:q8_0` names a --quantization"""

    def format_names(self) -> list[tuple[str, str | None]]:
        """Return format and quantisation of all formats."""
        parts = [part.strip().partition(":") for part in self.formats.split(",")] if self.formats is not None else []
        return [(name, quantization or None) for name, _, quantization in parts]

    def problems(self) -> list[str]:
        """Return one sentence for every option that is wrong."""
        values = [("length", self.length), ("tokens", self.tokens), ("repeats", self.repeats)]
        values += [("batches", batch) for batch in self.batches]
        values += [("unmerged", self.unmerged)] if self.unmerged is not None else []
        wrong = [name for name, _ in self.format_names() if name not in TIMED_FORMATS]
        close = nearest(wrong[0], TIMED_FORMATS) if wrong else ""
        timed = f"--formats {', '.join(wrong)}{close}: only {' and '.join(TIMED_FORMATS)} are timed"
        return [
            *super().problems(),
            *at_least(*((name, value, 1) for name, value in values)),
            *failed(
                (not wrong, timed),
                (
                    not self.formats or self.device in ("auto", "cpu"),
                    f"--device {self.device}: formats are timed on a CPU; give cpu",
                ),
            ),
        ]


@dataclass(frozen=True, kw_only=True)
class ReportConfig(Options):
    """Draw report.html of a run's folder again, and its plots as PNG and SVG."""

    model: str
    """folder that `prune` or `finetune` wrote"""
    plots: str | None = None
    """folder to write the plots to, as PNG and SVG"""


@dataclass(frozen=True, kw_only=True)
class CompareModelsConfig(ColumnOptions, MachineOptions):
    """Show any two or more models of one task in one table and one plot: parameters, MACs, size, speed, how good they are."""

    models: list[str]
    """folders or hub ids, the first being the reference"""
    data: str | None = None
    """what to measure how good they are on: a file, a folder, a hub id, or `stdlib`"""
    length: int = 256
    """tokens in a window or row of the data, and in a timed prefill"""
    batch: int = 8
    """windows at a time"""
    tokens: int = 32
    """tokens to generate for the decoding speed"""
    repeats: int = 5
    """timed runs of each"""
    output: str | None = None
    """folder for table.md, results.json and the plot; without it the table is only printed"""
    trust_remote_code: bool = False
    """dangerous: run modelling code that comes with a checkpoint"""

    def problems(self) -> list[str]:
        """Return one sentence for every option that is wrong."""
        repeated = [model for place, model in enumerate(self.models) if model in self.models[:place]]
        least = (
            ("batch", self.batch, 1),
            ("length", self.length, 2),
            ("tokens", self.tokens, 1),
            ("repeats", self.repeats, 1),
        )
        output = Path(self.output) if self.output is not None else None
        why = unwritable(self.output) if self.output is not None else None
        checks = [
            (len(self.models) > 1, f"--models names {len(self.models)}: at least two are needed"),
            (not repeated, f"{', '.join(repeated)}: named twice; name each model once"),
            (output is None or not output.is_file(), f"--output {output}: this is a file; name a folder"),
            (why is None, f"--output {output}: cannot be written ({why}); choose another folder"),
        ]
        return [*super().problems(), *at_least(*least), *failed(*checks)]


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
