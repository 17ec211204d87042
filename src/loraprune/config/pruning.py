"""Which units go, how many and when: the options of pruning itself, without those of training.

Knows nothing about torch, so that `--help` answers at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from loraprune.config.base import AdapterOptions, failed
from loraprune.config.sparsity import pattern_problems
from loraprune.errors import ConfigError

CriterionName = str
CRITERIA = (
    "auto", "flap", "gate", "gradient", "lora", "magnitude", "movement", "random", "sketch", "taylor", "wanda",
)  # fmt: skip
"""`auto`, and the criteria that the package brings; programs may register others"""
ScheduleName = Literal["cubic", "linear", "oneshot"]
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
    """query heads to keep in every layer; replaces --ratio; without --ffn all FFN channels stay"""
    ffn: int | None = None
    """FFN channels to keep in every layer; replaces --ratio; without --heads all heads stay"""
    heads_ratio: float | None = None
    """fraction of the heads to remove from every layer; replaces --ratio; without --ffn-ratio all FFN channels stay"""
    ffn_ratio: float | None = None
    """fraction of the FFN channels to remove from every layer; replaces --ratio; without --heads-ratio all heads stay"""
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
    criterion: CriterionName = "auto"
    """how units are scored: wanda and flap (activations), lora (Eq 10), sketch (an improved lora), gradient (the true gradient of the
    weights), gate (Fisher score of a gate on each unit), taylor and movement (its first order), magnitude, random; auto is wanda, with
    --sparsity lora"""
    power: Literal[1, 2] = 2
    """saliencies are squared (2, the paper) or taken as absolute values (1, the authors' code)"""
    normalize: bool = False
    """divide each projection's unit scores by their L2 norm before adding them (the authors' code; the paper does not)"""
    decay: float = 0.9
    """lambda of the moving average of scores, in [0, 1)"""
    allocation: Literal["auto", "uniform", "balanced", "paper", "global"] = "auto"
    """how removal is spread: uniform (heads and channels by the same ratio) or balanced (split by the scores) give all layers
    the same widths, which loads anywhere; paper (first tenth and last layer stay whole) and global (one ranking over the
    model) give every layer its own; auto is uniform"""
    depth: bool = False
    """with --allocation balanced: whole layers may go too, those that score least, where that loses less; the layers left are
    numbered anew"""
    compensate: bool | None = None
    """at each removal, refit the projections that read units to what they gave before, in closed form on training rows; without it
    wherever that is possible: not with convolutions, --sparsity or FSDP"""
    local: int | None = None
    """at each removal, after --compensate: steps in which every block that lost units is trained to reproduce what it gave before;
    units that several layers share are left to --compensate; 0 for none; without it 400 wherever that is possible"""
    local_all: bool = False
    """with --local: the blocks above the first that lost units learn too where they lost none, to mend what those below lost"""
    calibration: int = 32768
    """tokens that --compensate and --local look at"""
    history: bool = False
    """write the scores before every removal to scores_history.safetensors: `loraprune compare` draws from it how criteria agree
    over the steps"""
    schedule: Literal["auto", "cubic", "linear", "oneshot"] = "auto"
    """how removal grows over the run; auto is oneshot, with --sparsity cubic"""
    interval: int | None = None
    """optimiser steps between two removals; without it 10, fewer where a run is so short that few removals would be left"""
    warmup: float | None = None
    """fraction of the steps before the first removal; without it none before a single removal, else 0.1"""
    cooldown: float | None = None
    """fraction of the steps left for tuning after the last removal; without it all but a fortieth of what the
    warm-up leaves after a single removal, else 0.1"""
    shrink: bool = True
    """cut the model at each removal, which is faster; false masks until the end and gives the same model"""

    @property
    def changed(self) -> tuple[Literal["in", "out"], ...]:
        """Return the sides of projections whose frozen weights a removal changes: those that read units, or both."""
        return ("in", "out") if self.local else ("in",) if self.compensate else ()

    @property
    def chosen_criterion(self) -> CriterionName:
        """Return the name of the criterion that `auto` stands for."""
        if self.criterion != "auto":
            return self.criterion
        return "lora" if self.sparsity else "wanda"

    @property
    def chosen_allocation(self) -> str:
        """Return the name of the allocation that `auto` stands for."""
        return "uniform" if self.allocation == "auto" else self.allocation

    @property
    def chosen_schedule(self) -> ScheduleName:
        """Return the name of the schedule that `auto` stands for."""
        if self.schedule != "auto":
            return self.schedule
        return "cubic" if self.sparsity else "oneshot"

    @property
    def fractions(self) -> tuple[float, float]:
        """Return the fractions of the steps before the first removal and after the last one."""
        once = self.chosen_schedule == "oneshot"
        warmup = self.warmup if self.warmup is not None else 0.0 if once else 0.1
        # A single removal comes soon after the warm-up.
        cooldown = max(0.0, 0.975 - warmup) if once else 0.1
        return warmup, cooldown if self.cooldown is None else self.cooldown

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
            (
                self.local is None or self.local >= 0,
                f"--local {self.local}: 0 or a number of steps is needed, such as 200",
            ),
            (
                bool(self.local) or not self.local_all,
                "--local_all true: no block learns without steps; give --local 200",
            ),
            (self.calibration > 0, f"--calibration {self.calibration}: at least 1 token is needed"),
            (self.interval is None or self.interval > 0, f"--interval {self.interval}: at least 1 is needed"),
            (
                self.warmup is None or 0 <= self.warmup < 1,
                f"--warmup {self.warmup}: a fraction in [0, 1) is needed",
            ),
            (
                self.cooldown is None or 0 <= self.cooldown < 1,
                f"--cooldown {self.cooldown}: a fraction in [0, 1) is needed",
            ),
            (
                sum(self.fractions) < 1,
                f"--warmup {self.fractions[0]} --cooldown {self.fractions[1]}: they must sum to < 1",
            ),
            (
                not self.depth or (self.chosen_allocation == "balanced" and not self.has_dimensions),
                f"--depth true: scores choose the layers, which needs --allocation balanced (here {self.chosen_allocation}) and no "
                "widths by hand",
            ),
            (
                self.ratio == LoRAPruneConfig.ratio or not (self.parameters or self.has_dimensions),
                f"--ratio {self.ratio} {self._other_target()}: give one target only; leave --ratio out",
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

    def _other_target(self) -> str:
        """Return the targets beside --ratio that are given, as they are typed."""
        names = ("parameters", "heads", "ffn", "heads_ratio", "ffn_ratio")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return " ".join(f"--{name.replace('_', '-')} {value}" for name, value in given.items())

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
