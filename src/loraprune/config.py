"""The options of a training run: the text under a field is its help on the command line and in the documentation.

Knows nothing about torch, so that `--help` answers at once.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

from loraprune.errors import ConfigError
from loraprune.options import (
    AdapterOptions,
    BatchOptions,
    MachineOptions,
    ModelOptions,
    QuantizeOptions,
    WatchOptions,
    failed,
    missing_quantiser,
)
from loraprune.output import output_problem
from loraprune.sparsity.pattern import pattern_problems

CriterionName = str
WITHOUT_EFFECT = ("output", "overwrite", "resume", "save", "html", "log", "max_shard_size")
"""options of a run that do not bear on its result"""
UNIT_OPTIONS = (
    "parameters",
    "heads",
    "ffn",
    "heads_ratio",
    "ffn_ratio",
    "scores",
    "kinds",
    "round",
    "normalize",
    "allocation",
    "depth",
    "history",
    "compensate",
    "local",
    "local_all",
    "shrink",
)
"""options that say which units go or how: they mean nothing where single weights go"""


@dataclass(frozen=True, kw_only=True)
class LoRAPruneConfig(AdapterOptions):
    """What to remove and when: the part of a run that `LoRAPruneCallback` needs."""

    ratio: float = 0.5
    """fraction of the prunable parameters to remove, in [0, 1)"""
    parameters: str | None = None
    """parameters the whole model is to have, such as 600M or 1.2B, reached as closely as a ratio; replaces --ratio"""
    heads: int | None = None
    """query heads to keep in every layer; with --ffn, replaces --ratio"""
    ffn: int | None = None
    """FFN channels to keep in every layer; with --heads, replaces --ratio"""
    heads_ratio: float | None = None
    """fraction of the heads to remove from every layer; with --ffn-ratio, replaces --ratio"""
    ffn_ratio: float | None = None
    """fraction of the FFN channels to remove from every layer; with --heads-ratio, replaces --ratio"""
    scores: str | None = None
    """scores.safetensors of an earlier run of the same model: units are ranked by these and not scored anew"""
    sparsity: str | int | None = None  # YAML makes an int of an unquoted 2:4, which is refused by name
    """set single weights to zero instead of removing units: `unstructured` (with --ratio), or N:M such as 2:4 and 4:8,
    where N of every M neighbouring inputs stay; the model keeps its shapes"""
    round: int = 8
    """FFN widths are multiples of this; 1 for the exact ratio, 32 or more for quantised GGUF"""
    kinds: str = "auto"
    """kinds of units that may go, which --ratio counts in: `attention`, `ffn` or both as attention,ffn; `all`; or `auto`: all,
    but where --allocation gives equal widths only those that a stock checkpoint can hold, if there are any (GPT-2's can hold
    fewer channels, not fewer heads)"""
    criterion: CriterionName = "lora"
    """how units are scored: lora (Eq 10), sketch (an improved lora), gradient (the true gradient of the weights), gate (Fisher
    score of a gate on each unit), taylor and movement (its first order), wanda and flap (activations), magnitude, random"""
    power: Literal[1, 2] = 2
    """saliencies are squared (2, the paper) or taken as absolute values (1, the authors' code)"""
    normalize: bool = False
    """divide each projection's unit scores by their L2 norm before adding them (the authors' code; the paper does not)"""
    decay: float = 0.9
    """lambda of the moving average of scores, in [0, 1)"""
    allocation: Literal["uniform", "balanced", "paper", "global"] = "uniform"
    """how removal is spread: uniform (heads and channels by the same ratio) or balanced (split by the scores) give all layers
    the same widths, which loads anywhere; paper (first tenth and last layer stay whole) and global (one ranking over the
    model) give every layer its own"""
    depth: bool = False
    """with --allocation balanced: whole layers may go too, those that score least, where that loses less; the layers left are
    numbered anew"""
    compensate: bool = False
    """at each removal, refit the projections that read units to what they gave before, in closed form on training rows"""
    local: int = 0
    """at each removal, after --compensate: steps in which every block that lost units learns on its own to give what it gave
    before; units that several layers share are left to --compensate; 0 for none"""
    local_all: bool = False
    """with --local: the blocks above the first that lost units learn too where they lost none, to mend what those below lost"""
    calibration: int = 4096
    """tokens that --compensate and --local look at"""
    history: bool = False
    """write the scores before every removal to scores_history.safetensors: `loraprune compare` draws from it how criteria agree
    over the steps"""
    schedule: Literal["cubic", "linear", "oneshot"] = "cubic"
    """how removal grows over the run"""
    interval: int | None = None
    """optimiser steps between two removals; without it 10, fewer where a run is so short that few removals would be left"""
    warmup: float = 0.1
    """fraction of the steps before the first removal"""
    cooldown: float = 0.1
    """fraction of the steps left for tuning after the last removal"""
    shrink: bool = True
    """cut the model at each removal, which is faster; false masks until the end and gives the same model"""

    @property
    def changed(self) -> tuple[Literal["in", "out"], ...]:
        """Return the sides of projections whose frozen weights a removal changes: those that read units, or both."""
        return ("in", "out") if self.local else ("in",) if self.compensate else ()

    @property
    def has_dimensions(self) -> bool:
        """Say whether exact widths are asked for instead of a ratio."""
        return any(value is not None for value in (self.heads, self.ffn, self.heads_ratio, self.ffn_ratio))

    def problems(self) -> list[str]:
        """Return one sentence for every option that is wrong."""
        checks = [
            (0 <= self.ratio < 1, f"--ratio {self.ratio}: a fraction in [0, 1) is needed, such as 0.5"),
            (self.heads is None or self.heads > 0, f"--heads {self.heads}: at least 1 is needed"),
            (self.ffn is None or self.ffn > 0, f"--ffn {self.ffn}: at least 1 is needed"),
            *(
                (ratio is None or 0 <= ratio < 1, f"--{name} {ratio}: a fraction in [0, 1) is needed, such as 0.5")
                for name, ratio in (("heads-ratio", self.heads_ratio), ("ffn-ratio", self.ffn_ratio))
            ),
            (
                self.heads is None or self.heads_ratio is None,
                f"--heads {self.heads} --heads-ratio {self.heads_ratio}: give one of the two",
            ),
            (
                self.ffn is None or self.ffn_ratio is None,
                f"--ffn {self.ffn} --ffn-ratio {self.ffn_ratio}: give one of the two",
            ),
            (self.round > 0, f"--round {self.round}: at least 1 is needed"),
            (0 <= self.decay < 1, f"--decay {self.decay}: a number in [0, 1) is needed, such as 0.9"),
            (self.local >= 0, f"--local {self.local}: 0 or a number of steps is needed, such as 200"),
            (self.local > 0 or not self.local_all, "--local_all true: no block learns without steps; give --local 200"),
            (self.calibration > 0, f"--calibration {self.calibration}: at least 1 token is needed"),
            (self.interval is None or self.interval > 0, f"--interval {self.interval}: at least 1 is needed"),
            (0 <= self.warmup < 1, f"--warmup {self.warmup}: a fraction in [0, 1) is needed"),
            (0 <= self.cooldown < 1, f"--cooldown {self.cooldown}: a fraction in [0, 1) is needed"),
            (
                self.warmup + self.cooldown < 1,
                f"--warmup {self.warmup} --cooldown {self.cooldown}: they must sum to < 1",
            ),
            (
                not self.depth or (self.allocation == "balanced" and not self.has_dimensions),
                f"--depth true: scores choose the layers, which needs --allocation balanced (here {self.allocation}) and no "
                "widths by hand",
            ),
            (
                self.parameters is None or not self.has_dimensions,
                f"--parameters {self.parameters} and widths by hand: give one target only",
            ),
        ]
        found = [*super().problems(), *failed(*checks)]
        if self.parameters is not None:
            try:
                parse_count(self.parameters)
            except ConfigError as error:
                found.append(str(error))
        return [*found, *self._sparsity_problems()]

    def _sparsity_problems(self) -> list[str]:
        if self.sparsity is None:
            return []
        odd = [name for name in UNIT_OPTIONS if getattr(self, name) != getattr(LoRAPruneConfig, name)]
        found = [
            f"--sparsity {self.sparsity} --{name} {getattr(self, name)}: --{name} is about units, and none are removed; "
            "leave one of the two out"
            for name in odd
        ]
        return [*found, *pattern_problems(self.sparsity, self.ratio, default=LoRAPruneConfig.ratio)]


@dataclass(frozen=True, kw_only=True)
class TrainConfig(ModelOptions, MachineOptions, QuantizeOptions, BatchOptions, WatchOptions):
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
        absent = None if self.optimizer == "adamw" else missing_quantiser("8bit")
        checks.append((absent is None, f"--optimizer {self.optimizer}: {absent}"))
        problem = output_problem(self.output, overwrite=self.overwrite)
        return [*super().problems(), *failed(*checks), *([problem] if problem else [])]


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(AdapterOptions, TrainConfig):
    """Plain LoRA fine-tuning of the dense model: the baseline to compare with."""

    def pruning(self) -> LoRAPruneConfig:
        """Return the settings of LoRA in the form that both jobs share, with nothing to remove."""
        return LoRAPruneConfig(**{f.name: getattr(self, f.name) for f in fields(AdapterOptions)}, ratio=0.0)


@dataclass(frozen=True, kw_only=True)
class PruneConfig(LoRAPruneConfig, TrainConfig):
    """Prune while fine-tuning with LoRA, merge, verify and save."""

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
            (absent is None, f"--teacher 8bit: {absent}"),
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
        """Return the part that the callback needs."""
        return LoRAPruneConfig(**{f.name: getattr(self, f.name) for f in fields(LoRAPruneConfig)})


def parse_count(text: str) -> int:
    """Read a number of parameters such as 600M, 1.2B, 75k or 1000000.

    Raises:
        ConfigError: if it is none.
    """
    scale = {"k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9}.get(text[-1:].lower(), 1)
    try:
        count = float(text[:-1] if scale > 1 else text) * scale
    except ValueError:
        count = math.nan
    if not (count >= 1 and math.isfinite(count)):
        raise ConfigError(f"--parameters {text}: a count such as 600M, 1.2B or 250000 is needed")
    return round(count)


def as_dict(config: TrainConfig | LoRAPruneConfig) -> dict[str, Any]:
    """Return all options of a run, as written to run.yaml."""
    return {f.name: getattr(config, f.name) for f in fields(config)}
