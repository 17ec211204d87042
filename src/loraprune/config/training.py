"""Options of a training run. The text below a field is its help on the command line and in the documentation.

Imports no torch, so that `--help` is fast.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

from loraprune.config.base import (
    AdapterOptions,
    BatchOptions,
    MachineOptions,
    ModelOptions,
    QuantizeOptions,
    WatchOptions,
    failed,
    idle_options,
    missing_quantiser,
    rounding_problem,
)
from loraprune.config.columns import ColumnOptions
from loraprune.config.drop import SearchOptions
from loraprune.config.pruning import LoRAPruneConfig
from loraprune.config.sizes import SizesOptions
from loraprune.config.streamed import BaseOptions, streaming_problems
from loraprune.config.target import second_target, typed
from loraprune.config.vocabulary import VocabularyOptions
from loraprune.runtime.output import output_problem

WITHOUT_EFFECT = ("output", "overwrite", "resume", "save", "html", "log", "max_shard_size")
"""options that do not change the result of a run"""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(ModelOptions, ColumnOptions, MachineOptions, QuantizeOptions, BatchOptions, WatchOptions):
    """Model, data, and how to train."""

    data: str
    """training data: a .txt, .jsonl, .json, .csv, .tsv or .parquet file, a folder of them, a hub id, `stdlib` (Python's own modules), or a
    GLUE task such as glue:sst2 or the folder SST-2 of its archive; rows are texts, chats, or texts with a `label`"""
    output: str
    """folder for the result; it must not exist, unless --overwrite is given"""
    eval: str | None = None
    """evaluation data; by default the evaluation split of --data, or a held-out part of it"""
    steps: int | None = None
    """optimiser steps; by default --epochs decides; 0 prunes without training, by the scores of one pass over --rows"""
    epochs: float = 2.0
    """passes over the data if --steps is not given"""
    rows: int | None = None
    """use at most N training rows, drawn at random with --seed"""
    accumulate: int = 1
    """forward passes per optimiser step; the paper's batch of 128 is --batch 8 --accumulate 16"""
    lr: float = 1e-4
    """peak learning rate, with cosine decay"""
    lora_plus: float = 1.0
    """learning rate of LoRA's B divided by that of A, which is --lr; LoRA+ proposes 16"""
    clip: float = 1.0
    """maximum gradient norm, applied after scoring; 0 for none"""
    optimizer: Literal["adamw", "adamw-8bit", "paged", "paged-8bit"] = "adamw"
    """adamw; adamw-8bit keeps its moments in 8 bits; paged moves them to CPU memory when the GPU runs short; paged-8bit does both. All
    but adamw use bitsandbytes (extra `quant`) and need --shrink false"""
    compile: bool = False
    """compile the training step with torch.compile: a minute or more at the start, then faster steps on GPUs. Needs --shrink false, a
    single process, a criterion without hooks such as lora, and no --quantize"""
    overwrite: bool = False
    """replace the output folder if loraprune wrote it"""
    save: int | None = None
    """write a checkpoint to OUTPUT.partial every N optimiser steps; 0 for none; by default one every five minutes"""
    resume: bool = False
    """continue from the newest complete checkpoint in OUTPUT.partial, if there is one; `loraprune resume OUTPUT` does the same without
    repeating the options"""

    max_shard_size: str = "5GB"
    """maximum size of one file of saved weights, such as 500MB"""

    least_steps: ClassVar[int] = 1
    held_out_apart: ClassVar[bool] = False
    """whether a half of the held-out rows chooses between runs, so that figures are measured on the other half"""

    @property
    def is_streamed(self) -> bool:
        """Return whether layers are read from disk when they are at work."""
        return False

    def problems(self) -> list[str]:
        """Return one sentence for every option that is wrong."""
        checks = [
            (bool(self.data), "--data is empty: name a file, a folder or a hub id"),
            (
                self.steps is None or self.steps >= self.least_steps,
                f"--steps {self.steps}: at least {self.least_steps} is needed",
            ),
            (self.rows is None or self.rows > 0, f"--rows {self.rows}: at least 1 is needed"),
            (self.epochs > 0 and math.isfinite(self.epochs), f"--epochs {self.epochs}: a positive number is needed"),
            (self.accumulate > 0, f"--accumulate {self.accumulate}: at least 1 is needed"),
            (self.lr > 0 and math.isfinite(self.lr), f"--lr {self.lr}: a positive number is needed, such as 1e-4"),
            (
                self.lora_plus >= 1 and math.isfinite(self.lora_plus),
                f"--lora-plus {self.lora_plus}: a number of at least 1 is needed, such as 4",
            ),
            (self.save is None or self.save >= 0, f"--save {self.save}: 0 or a number of steps is needed"),
            (self.clip >= 0, f"--clip {self.clip}: 0 or a positive number is needed"),
            (
                re.fullmatch(r"[1-9][0-9]*[KMGT]B", self.max_shard_size) is not None,
                f"--max-shard-size {self.max_shard_size}: a whole number of KB, MB, GB or TB is needed, such as 5GB",
            ),
        ]
        checks.append((
            not self.compile or self.quantize == "none",
            f"--compile true --quantize {self.quantize}: torch.compile cannot trace quantised layers; leave one of the two out",
        ))  # fmt: skip
        rounded = rounding_problem(self.model, "--quantize", self.quantize)
        checks.append((rounded is None, str(rounded)))
        absent = None if self.optimizer == "adamw" else missing_quantiser("8bit")
        checks.append((absent is None, f"--optimizer {self.optimizer}: {absent}"))
        problem = output_problem(self.output, overwrite=self.overwrite, resume=self.resume, inputs=self.inputs())
        return [*super().problems(), *failed(*checks), *([problem] if problem else [])]

    def idle(self) -> list[str]:
        """Return one sentence for every option that is given and changes nothing beside the others."""
        found = super().idle()
        if self.steps is not None:
            found += idle_options(self, f"--steps {self.steps} sets the length of the run", "epochs")
        if self.steps == 0:
            found += idle_options(self, "--steps 0 trains nothing", "lr", "lora_plus", "clip", "optimizer")
        return found


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(AdapterOptions, TrainConfig):
    """Fine-tune the dense model with LoRA: the baseline for every pruned model."""

    job: ClassVar[str] = "finetune"

    def pruning(self) -> LoRAPruneConfig:
        """Return the LoRA options as a pruning configuration that removes nothing."""
        return LoRAPruneConfig(**{f.name: getattr(self, f.name) for f in fields(AdapterOptions)}, ratio=0.0)


@dataclass(frozen=True, kw_only=True)
class PruneConfig(LoRAPruneConfig, SizesOptions, SearchOptions, VocabularyOptions, BaseOptions, TrainConfig):
    """Prune a model while fine-tuning it with LoRA; merge, verify and save it."""

    job: ClassVar[str] = "prune"
    teacher: Literal["none", "auto", "copy", "8bit", "cache"] = "none"
    """distil from the dense model: copy keeps it in memory, 8bit keeps it with quantised linear layers, cache stores its most likely
    tokens on disk before training. auto: the first of these that fits in memory"""
    least_steps: ClassVar[int] = 0
    distill: float = 0.5
    """weight of the distillation loss, from 0 to 1; the language-model loss gets 1 minus this"""
    rounds: int = 1
    """prune in N rounds that share the target and the steps; after each round LoRA is merged and re-initialised with half the rank and
    half the learning rate"""

    def problems(self) -> list[str]:
        """Return one sentence for every option that is wrong."""
        wrong = (0 <= self.distill <= 1, f"--distill {self.distill}: a fraction in [0, 1] is needed, such as 0.5")
        absent = missing_quantiser("8bit") if self.teacher == "8bit" else None
        checks = [
            wrong,
            (
                self.teacher != "none" or self.distill == PruneConfig.distill,
                f"--distill {self.distill}: it weighs a teacher, and no teacher is used; give --teacher auto, or leave it out",
            ),
            (absent is None, f"--teacher 8bit: {absent}"),
            ((rounded := rounding_problem(self.model, "--teacher", self.teacher)) is None, str(rounded)),
            (
                not self.compile or not self.shrink or self.sparsity is not None,
                "--compile true: a compiled graph needs fixed shapes, and removals change them; give --shrink false too",
            ),
            (
                self.optimizer == "adamw" or not self.shrink or self.sparsity is not None,
                f"--optimizer {self.optimizer}: its state cannot be sliced with the model; give --shrink false too, or use adamw",
            ),
        ]
        several = [*self._round_problems(), *self._search_problems(), *self._size_problems()]
        if self.is_streamed:
            several += streaming_problems(as_dict(self))
        return [*super().problems(), *failed(*checks), *several]

    def _round_problems(self) -> list[str]:
        if self.rounds < 2:
            return failed((self.rounds > 0, f"--rounds {self.rounds}: at least 1 is needed"))
        given = f"--rounds {self.rounds}"
        return failed(
            (
                self.sparsity is None,
                f"{given} --sparsity {self.sparsity}: merging LoRA would overwrite the zeros; leave one of the two out",
            ),
            (
                self.vocabulary is None,
                f"{given} --vocabulary {self.vocabulary}: rounds share one vocabulary; cut it first by --vocabulary {self.vocabulary} "
                "--ratio 0 --steps 0, and name that folder as --model",
            ),
            (
                self.scores is None,
                f"{given} --scores {self.scores}: every round scores units again; leave one of the two out",
            ),
            (
                self.steps != 0,
                f"{given} --steps 0: without training there is nothing to merge; leave one of the two out",
            ),
            (
                not self.steps or self.steps >= self.rounds,
                f"{given} --steps {self.steps}: every round needs a step; give at least {self.rounds}",
            ),
            (
                not self.has_dimensions,
                f"{given} and explicit widths: each round removes a part; give --ratio, --size or --parameters",
            ),
            (
                not self.depth,
                f"{given} --depth true: layers would be renumbered between rounds; leave one of the two out",
            ),
            (
                not self.searches,
                f"{given} --allocation searched: rounds may not differ in their kinds of units; use --allocation measured",
            ),
            (
                self.memory is None and self.speedup is None,
                f"{given}: --memory and --speedup fix the shape at once, and each round removes a part; give --ratio, --size, --parameters "
                "or --file-size",
            ),
            (
                self.teacher == "none",
                f"{given} --teacher {self.teacher}: later rounds do not start from the dense model; leave one of the two out",
            ),
        )

    def _search_problems(self) -> list[str]:
        """Return one sentence for every option that --max-drop rules out."""
        if self.max_drop is None:
            return []
        given, limit = self.drop_given, {"max_drop": self.max_drop}
        others = self.other_targets or {}
        return failed(
            (not others, f"{typed({**others, **limit})}: give one target only; leave the others out"),
            (bool(others) or self.ratio == PruneConfig.ratio, second_target(self.ratio, limit)),
            (
                self.sparsity is None,
                f"{given} --sparsity {self.sparsity}: zeros make no model smaller; leave one of the two out",
            ),
            (
                self.vocabulary is None,
                f"{given} --vocabulary {self.vocabulary}: the tries share one vocabulary; cut it first by --vocabulary "
                f"{self.vocabulary} --ratio 0 --steps 0, and name that folder as --model",
            ),
            (
                self.rounds < 2,
                f"{given} --rounds {self.rounds}: every try would be {self.rounds} runs; leave one of the two out",
            ),
            (
                self.patience is None,
                f"{given} --patience {self.patience}: early stopping would choose by the rows that the result is measured on; leave "
                "one of the two out",
            ),
            (
                self.log is None,
                f"{given} --log {self.log}: the tries are several runs, whose curves would be mixed; leave one of the two out",
            ),
        )

    def _size_problems(self) -> list[str]:
        """Return one sentence for every option that --sizes rules out."""
        if self.sizes is None:
            return []
        given, count = self.sizes_given, len(self.sizes if isinstance(self.sizes, list) else self.sizes.split(","))
        others = {**(self.other_targets or {}), "max_drop": self.max_drop}
        alone = "leave one of the two out"
        return failed(
            (self.ratio == PruneConfig.ratio, f"--ratio {self.ratio} {given}: give one target only; leave --ratio out"),
            (not (words := typed(others)), f"{words} {given}: give one target only; leave the others out"),
            (self.rounds < 2, f"{given} --rounds {self.rounds}: every size is a round already; {alone}"),
            (self.sparsity is None, f"{given} --sparsity {self.sparsity}: zeros make no model smaller; {alone}"),
            (
                self.vocabulary is None,
                f"{given} --vocabulary {self.vocabulary}: the sizes share one vocabulary; cut it first by --vocabulary "
                f"{self.vocabulary} --ratio 0 --steps 0, and name that folder as --model",
            ),
            (self.scores is None, f"{given} --scores {self.scores}: every size scores units again; {alone}"),
            (not self.depth, f"{given} --depth true: layers would be renumbered between sizes; {alone}"),
            (
                self.teacher == "none",
                f"{given} --teacher {self.teacher}: later sizes do not start from the dense model; {alone}",
            ),
            (
                not self.steps or self.steps >= count,
                f"{given} --steps {self.steps}: every size needs a step; give at least {count}, or 0",
            ),
            (
                self.log is None,
                f"{given} --log {self.log}: the sizes are several runs, whose curves would be mixed; {alone}",
            ),
        )

    def pruning(self) -> LoRAPruneConfig:
        """Return the options of the callback. Without training there is no cooldown, so that the whole pass is used for scoring.

        What needs the whole model is left out if its layers are on disk.
        """
        options = {f.name: getattr(self, f.name) for f in fields(LoRAPruneConfig)}
        if self.steps == 0:
            options["cooldown"] = 0.0
        if self.is_streamed:
            options |= {"end_to_end": 0, "allocation": "uniform" if self.allocation == "auto" else self.allocation}
        return LoRAPruneConfig(**options)


def as_dict(config: TrainConfig | LoRAPruneConfig) -> dict[str, Any]:
    """Return all options of a run, as run.yaml stores them."""
    return {f.name: getattr(config, f.name) for f in fields(config)}
