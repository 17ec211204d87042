"""The options of a training run: the text under a field is its help on the command line and in the documentation.

Knows nothing about torch, so that `--help` answers at once.
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
    missing_quantiser,
    rounding_problem,
)
from loraprune.config.columns import ColumnOptions
from loraprune.config.pruning import LoRAPruneConfig
from loraprune.runtime.output import output_problem

WITHOUT_EFFECT = ("output", "overwrite", "resume", "save", "html", "log", "max_shard_size")
"""options of a run that do not bear on its result"""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(ModelOptions, ColumnOptions, MachineOptions, QuantizeOptions, BatchOptions, WatchOptions):
    """Which model is trained on which data, how long and how."""

    data: str
    """what to train on: a .txt, .jsonl, .json, .csv or .parquet file, a folder of them, a hub id, or `stdlib`; texts, chats, or
    `text`, perhaps `text_pair`, and `label`; GLUE's tasks by name: the archive's folder (.../SST-2), or glue:sst2 from the hub"""
    output: str
    """folder to write; must not exist unless --overwrite"""
    eval: str | None = None
    """what to judge by; without it the split of --data that is for it, or a part held out"""
    steps: int | None = None
    """optimiser steps; without it --epochs decides; 0 prunes without any training, on the scores of one pass over --rows"""
    epochs: float = 2.0
    """passes over the data, where --steps is not given"""
    rows: int | None = None
    """training rows to use at most, drawn by the seed"""
    accumulate: int = 1
    """micro-batches in an optimiser step; the paper's batch of 128 is --batch 8 --accumulate 16"""
    lr: float = 1e-4
    """peak learning rate of AdamW, decayed along a cosine"""
    clip: float = 1.0
    """largest norm of the gradients, applied after scoring; 0 for none"""
    optimizer: Literal["adamw", "adamw-8bit", "paged", "paged-8bit"] = "adamw"
    """AdamW; with moments in 8-bit blocks; in memory that moves from GPU to CPU where it gets short (paged); or both. All but the
    first are bitsandbytes' (extra `quant`), and their state cannot be cut: they need --shrink false"""
    compile: bool = False
    """let torch.compile make one graph of the step: a minute or more at the start, faster steps afterwards on GPUs. Shapes must stay,
    so it needs --shrink false; one process, a criterion without hooks such as lora, and a base that is not quantised"""
    overwrite: bool = False
    """replace the output folder if a run wrote it"""
    save: int | None = None
    """optimiser steps between two checkpoints, which lie in OUTPUT.partial until the run is done; without it one every five
    minutes; 0 for none"""
    resume: bool = False
    """go on from the newest whole checkpoint in OUTPUT.partial, if there is one; the other options must be the same"""

    max_shard_size: str = "5GB"
    """most that a file of the saved weights holds, such as 500MB"""

    least_steps: ClassVar[int] = 1

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
            (self.save is None or self.save >= 0, f"--save {self.save}: 0 or a number of steps is needed"),
            (self.clip >= 0, f"--clip {self.clip}: 0 or a positive number is needed"),
            (
                re.fullmatch(r"[1-9][0-9]*[KMGT]B", self.max_shard_size) is not None,
                f"--max-shard-size {self.max_shard_size}: a whole number of KB, MB, GB or TB is needed, such as 5GB",
            ),
        ]
        checks.append((
            not self.compile or self.quantize == "none",
            f"--compile true --quantize {self.quantize}: the quantiser's kernels are no part of a graph; leave one of the two out",
        ))  # fmt: skip
        rounded = rounding_problem(self.model, "--quantize", self.quantize)
        checks.append((rounded is None, str(rounded)))
        absent = None if self.optimizer == "adamw" else missing_quantiser("8bit")
        checks.append((absent is None, f"--optimizer {self.optimizer}: {absent}"))
        problem = output_problem(self.output, overwrite=self.overwrite, resume=self.resume, inputs=self.inputs())
        return [*super().problems(), *failed(*checks), *([problem] if problem else [])]


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(AdapterOptions, TrainConfig):
    """Plain LoRA fine-tuning of the dense model: the baseline to compare with."""

    job: ClassVar[str] = "finetune"

    def pruning(self) -> LoRAPruneConfig:
        """Return the settings of LoRA in the form that both jobs share, with nothing to remove."""
        return LoRAPruneConfig(**{f.name: getattr(self, f.name) for f in fields(AdapterOptions)}, ratio=0.0)


@dataclass(frozen=True, kw_only=True)
class PruneConfig(LoRAPruneConfig, TrainConfig):
    """Prune while fine-tuning with LoRA, merge, verify and save."""

    job: ClassVar[str] = "prune"
    teacher: Literal["none", "auto", "copy", "8bit", "cache"] = "none"
    """learn from the dense model too: copy keeps a second one in memory, 8bit one whose linear layers are quantised, cache writes its
    most likely tokens to disk before training; auto takes the first that memory allows"""
    least_steps: ClassVar[int] = 0
    distill: float = 0.5
    """weight of the dense model's opinion in the loss, in [0, 1]; the text has the rest"""
    rounds: int = 1
    """prune in so many rounds, which share target and steps: after each LoRA is merged and starts anew with half the rank and half
    the learning rate"""

    def problems(self) -> list[str]:
        """Return one sentence for every option that is wrong."""
        wrong = (0 <= self.distill <= 1, f"--distill {self.distill}: a fraction in [0, 1] is needed, such as 0.5")
        absent = missing_quantiser("8bit") if self.teacher == "8bit" else None
        checks = [
            wrong,
            (
                self.teacher != "none" or self.distill == PruneConfig.distill,
                f"--distill {self.distill}: it weighs the opinion of a teacher, and there is none; give --teacher auto, or leave it out",
            ),
            (absent is None, f"--teacher 8bit: {absent}"),
            ((rounded := rounding_problem(self.model, "--teacher", self.teacher)) is None, str(rounded)),
            (
                not self.compile or not self.shrink or self.sparsity is not None,
                "--compile true: a graph holds for the shapes it was made of, and removals change them; give --shrink false too",
            ),
            (
                self.optimizer == "adamw" or not self.shrink or self.sparsity is not None,
                f"--optimizer {self.optimizer}: its state cannot be cut with the model; give --shrink false too, or use adamw",
            ),
        ]
        return [*super().problems(), *failed(*checks), *self._round_problems()]

    def _round_problems(self) -> list[str]:
        if self.rounds < 2:
            return failed((self.rounds > 0, f"--rounds {self.rounds}: at least 1 is needed"))
        told = f"--rounds {self.rounds}"
        return failed(
            (
                self.sparsity is None,
                f"{told} --sparsity {self.sparsity}: merging would fill zeros again; leave one out",
            ),
            (self.scores is None, f"{told} --scores {self.scores}: every round scores anew; leave one out"),
            (self.steps != 0, f"{told} --steps 0: without training there is nothing to merge; leave one out"),
            (
                not self.steps or self.steps >= self.rounds,
                f"{told} --steps {self.steps}: every round needs a step; give at least {self.rounds}",
            ),
            (
                not self.has_dimensions,
                f"{told} and widths by hand: a round goes a part of the way; give --ratio or --parameters",
            ),
            (
                self.teacher == "none",
                f"{told} --teacher {self.teacher}: later rounds do not start from the dense model; leave one out",
            ),
        )

    def pruning(self) -> LoRAPruneConfig:
        """Return the part that the callback needs; without training no step is left for tuning, and the whole pass scores."""
        options = {f.name: getattr(self, f.name) for f in fields(LoRAPruneConfig)}
        return LoRAPruneConfig(**options | ({"cooldown": 0.0} if self.steps == 0 else {}))


def as_dict(config: TrainConfig | LoRAPruneConfig) -> dict[str, Any]:
    """Return all options of a run, as written to run.yaml."""
    return {f.name: getattr(config, f.name) for f in fields(config)}
