"""Options of the commands that describe, measure and compare models.

Imports no torch, so that `--help` is fast.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from loraprune.config import recipes
from loraprune.config.base import (
    PLAIN,
    BatchOptions,
    Dtype,
    MachineOptions,
    ModelOptions,
    Options,
    QuantizeOptions,
    at_least,
    failed,
    idle_options,
)
from loraprune.config.columns import ColumnOptions
from loraprune.config.drop import DropOptions
from loraprune.config.export import quantization_problem
from loraprune.config.pruning import LoRAPruneConfig
from loraprune.config.sizes import SizesOptions
from loraprune.config.target import typed
from loraprune.config.training import PruneConfig
from loraprune.config.values import Fraction
from loraprune.config.vocabulary import DATA, VocabularyOptions
from loraprune.errors import ConfigError, nearest
from loraprune.runtime.hub import DEMO, STDLIB
from loraprune.runtime.output import PARTIAL, unwritable
from loraprune.runtime.run_file import run_problem

ZERO_SHOT = ("boolq", "piqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa")
"""the seven tasks of the paper, under their names in lm-eval"""
TIMED_FORMATS = ("onnx", "gguf")
"""formats of `export` that can be timed"""
DEMO_CALIBRATION = 8192
"""tokens for recovery in the demo: a quarter of the default, so that it takes minutes on two cores"""
KNOWN = "known"
"""stands for all models whose shapes the package knows"""


@dataclass(frozen=True, kw_only=True)
class InspectConfig(ModelOptions):
    """Show what can be pruned in a model, or why it cannot be pruned."""


@dataclass(frozen=True, kw_only=True)
class PlanConfig(
    LoRAPruneConfig, SizesOptions, DropOptions, VocabularyOptions, QuantizeOptions, BatchOptions, ModelOptions
):
    """Predict size, memory and FLOPs of a run without loading weights."""

    model: str = KNOWN
    """folder, hub id, `demo`, or a known model that needs no download: llama-7b, llama-13b, llama-30b, llama-65b, llama-3-8b,
    llama-3-70b; `known` shows all of these in one table"""
    dtype: Dtype = "bfloat16"
    """precision of the weights during training and in the file; `prune` keeps the checkpoint's by default"""
    accumulate: int = 1
    """forward passes per optimiser step"""
    teacher: Literal["none", "copy", "cache"] = "none"
    """as in `prune`; copy keeps a second model in memory"""
    gpus: int = 1
    """number of GPUs that train together; figures are per GPU"""
    sharding: Literal["ddp", "fsdp"] = "ddp"
    """with --gpus: every GPU holds the whole model (ddp) or a part of its weights (fsdp)"""
    needs_library: ClassVar[bool] = False

    def problems(self) -> list[str]:
        """Return one sentence for every option that is wrong."""
        shapes = (
            f"--sparsity {self.sparsity}: shapes and sizes do not change, so there is nothing to plan; leave it out"
        )
        unread = f"--vocabulary {self.vocabulary}: `plan` reads no data; give a number of tokens, such as 16000"
        unknown = (
            f"{self.drop_given}: `plan` measures nothing, so it cannot know what a cut loses; give it to `loraprune prune`, "
            "or --ratio here"
        )
        sizes = at_least(("gpus", self.gpus, 1), ("accumulate", self.accumulate, 1))
        shards = f"--adapter {self.adapter} --sharding fsdp: FSDP shards weights that it needs whole; use --adapter lora or rslora"
        checks = failed(
            (self.sparsity is None, shapes),
            (self.vocabulary != DATA, unread),
            (self.sharding != "fsdp" or self.adapter in PLAIN, shards),
            (self.max_drop is None, unknown),
            *self._sizes_alone(),
        )
        return [*super().problems(), *sizes, *checks]

    def _sizes_alone(self) -> list[tuple[bool, str]]:
        """Return for every option that --sizes rules out whether it is left out, and what is wrong if not."""
        if self.sizes is None:
            return []
        given = self.sizes_given
        return [
            (self.model != KNOWN, f"{given} --model {KNOWN}: their table has one size; name a model, or give --size"),
            (self.ratio == PlanConfig.ratio, f"--ratio {self.ratio} {given}: give one target only; leave --ratio out"),
            (
                not (words := typed(self.other_targets or {})),
                f"{words} {given}: give one target only; leave the others out",
            ),
        ]

    def idle(self) -> list[str]:
        """Return one sentence for every option that is given and changes nothing beside the others."""
        alone = idle_options(self, "a single GPU shares nothing; give --gpus 2 or more", "sharding")
        return [*super().idle(), *(alone if self.gpus == 1 else [])]


@dataclass(frozen=True, kw_only=True)
class ResumeConfig(Options):
    """Continue an interrupted run from its newest checkpoint."""

    output: str
    """output folder of the interrupted `prune` or `finetune`; its options are read from OUTPUT.partial"""

    def __post_init__(self) -> None:
        object.__setattr__(self, "output", self.output.rstrip("/").removesuffix(PARTIAL))
        super().__post_init__()

    def problems(self) -> list[str]:
        """Return one sentence for every option that is wrong."""
        problem = run_problem(self.output)
        return [*super().problems(), *([problem] if problem else [])]


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(ModelOptions, ColumnOptions, MachineOptions):
    """Evaluate one or two models: perplexity, accuracy, tasks of lm-eval."""

    data: list[str] | str | None = None
    """evaluation data: a file, a folder, a hub id, or `stdlib`; several as [A, B]"""
    against: str | None = None
    """second model to compare with, usually the dense one"""
    length: list[int] | int = 512
    """tokens per window, several as [128, 2048]; the largest also limits the questions of --tasks"""
    rows: int | None = None
    """use only the first N windows or rows of each data set"""
    batch: int = 8
    """rows or questions per forward pass; rows of similar lengths are computed together"""
    tasks: str | None = None
    """tasks of lm-eval, separated by commas: `zero-shot` (the paper's seven), mmlu, or any other task with an accuracy"""
    task_data: str | None = None
    """folder with a file TASK.jsonl (or .json, .csv, .parquet) per task, in the columns of the stock tasks; by default from the hub"""
    limit: int | None = None
    """use only the first N questions of each task"""
    shots: int = 0
    """solved examples before each question; the paper uses none"""
    record: bool = False
    """store the result as evaluation.json in the model's folder, and update its report.html"""

    def lengths(self) -> list[int]:
        """Return all window lengths."""
        return self.length if isinstance(self.length, list) else [self.length]

    def texts(self) -> list[str]:
        """Return the names of all data sets."""
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
            *(
                (value is None or bool(self.texts()), f"--{name} {value}: it is about --data; give that too")
                for name, value in (("rows", self.rows), ("columns", self.columns))
            ),
            (
                not self.record or (Path(self.model) / "report.json").is_file(),
                f"--record: --model {self.model} is not a folder written by loraprune; leave --record out, or name such a folder",
            ),
        ]
        return [*super().problems(), *at_least(*least), *failed(*checks)]


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig(ModelOptions, MachineOptions):
    """Measure size and speed of one or two models."""

    against: str | None = None
    """second model to compare with, usually the dense one; both are timed in turns"""
    batches: list[int] = field(default_factory=lambda: [1, 16])
    """batch sizes of the prefill"""
    length: int = 256
    """tokens per row in the prefill"""
    tokens: int = 32
    """tokens to generate when decoding is timed"""
    repeats: int = 10
    """number of timed runs"""
    unmerged: int | None = None
    """also time the model with unmerged LoRA adapters of rank N"""
    formats: str | None = None
    """also export the model to a temporary folder and time it there on the CPU: onnx (onnxruntime) or gguf (llama.cpp), separated by
    commas; `gguf:q8_0` also sets the --quantization of `export`"""

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
        rounded = [quantization_problem(*one) for one in self.format_names()]
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
                *((problem is None, f"--formats {self.formats}: {problem}") for problem in rounded),
            ),
        ]

    def idle(self) -> list[str]:
        """Return one sentence for every option that is given and changes nothing beside the others."""
        return [*super().idle(), *idle_options(self, "a model is timed with the head that it has", "task")]


@dataclass(frozen=True, kw_only=True)
class ReportConfig(Options):
    """Write report.html of a finished run again, and its plots as files."""

    model: str
    """folder written by `prune` or `finetune`"""
    plots: str | None = None
    """folder for the plots, as PNG and SVG"""

    def problems(self) -> list[str]:
        """Return one sentence for every option that is wrong."""
        written = (Path(self.model) / "report.json").is_file()
        ours = f"--model {self.model}: no report.json in it; name a folder that `prune` or `finetune` wrote"
        return [*super().problems(), *failed((written, ours))]


@dataclass(frozen=True, kw_only=True)
class CompareModelsConfig(ColumnOptions, MachineOptions):
    """Compare size, speed and quality of several models in one table and plot."""

    models: list[str]
    """folders or hub ids; the first model is the reference"""
    data: str | None = None
    """evaluation data: a file, a folder, a hub id, or `stdlib`"""
    length: int = 256
    """tokens per row, in the evaluation and in the timed prefill"""
    batch: int = 8
    """rows per forward pass"""
    tokens: int = 32
    """tokens to generate when decoding is timed"""
    repeats: int = 5
    """number of timed runs"""
    output: str | None = None
    """folder for table.md, results.json and the plot; by default the table is only printed"""
    trust_remote_code: bool = False
    """run Python code from the checkpoints; use it only for checkpoints that you trust"""

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
            (
                self.columns is None or self.data is not None,
                f"--columns {self.columns}: it is about --data; give that too",
            ),
            (len(self.models) > 1, f"--models {' '.join(self.models) or '[]'}: at least two models are needed"),
            (not repeated, f"--models {', '.join(repeated)}: given twice; name each model once"),
            (output is None or not output.is_file(), f"--output {output}: this is a file; name a folder"),
            (why is None, f"--output {output}: cannot be written ({why}); choose another folder"),
        ]
        return [*super().problems(), *at_least(*least), *failed(*checks)]


@dataclass(frozen=True, kw_only=True)
class DemoConfig(Options):
    """Prune the small model that ships with the package, offline, and show the result."""

    output: str = "demo-pruned"
    """folder for the result"""
    steps: int = 120
    """optimiser steps"""
    ratio: Fraction = 0.5
    """fraction of the prunable parameters to remove, from 0 to below 1"""
    seed: int = 0
    """seed for the data order and the adapters"""
    overwrite: bool = False
    """replace the output folder if loraprune wrote it"""

    def problems(self) -> list[str]:
        """Return one sentence for every option that is wrong."""
        try:
            self.recipe()
        except ConfigError as error:
            return list(error.args)
        return super().problems()

    def recipe(self) -> PruneConfig:
        """Return the run of the demo: the recommended recipe, with options that suit a small model which was trained on the same data."""
        return PruneConfig(
            model=DEMO, data=STDLIB, output=self.output, overwrite=self.overwrite, ratio=self.ratio, steps=self.steps,
            seed=self.seed, batch=8, length=256, lr=3e-3, device="cpu",
            **(recipes.recipe("best") | {"calibration": DEMO_CALIBRATION, "cooldown": 0.975}),
        )  # fmt: skip
