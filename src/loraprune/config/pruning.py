"""Options of pruning: which units are removed, and when.

Imports no torch, so that `--help` is fast.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from loraprune.config.base import (
    PLAIN,
    SPLITTING,
    AdapterOptions,
    as_typed,
    dashed,
    failed,
    idle_options,
)
from loraprune.config.in_python import spoken_in_python
from loraprune.config.sparsity import pattern_problems
from loraprune.config.target import TARGETS, TargetOptions
from loraprune.config.values import Fraction
from loraprune.errors import nearest

CriterionName = str
CRITERIA = (
    "auto", "flap", "gate", "gradient", "lora", "magnitude", "movement", "random", "reap", "sketch", "taylor", "wanda",
)  # fmt: skip
"""`auto`, and the criteria that the package brings; programs may register others"""
ScheduleName = Literal["cubic", "linear", "oneshot"]
KINDS = ("attention", "query", "ffn", "channel", "shared_ffn", "expert_ffn", "expert")
"""kinds of units; a model has some of them"""
MEASURED = ("measured", "searched")
"""allocations that are decided on calibration rows"""
UNIT_OPTIONS = (
    *TARGETS,
    "context",
    "timed",
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
    "end_to_end",
    "shrink",
)
"""options about units, which do not apply with --sparsity"""


@dataclass(frozen=True, kw_only=True)
class LoRAPruneConfig(AdapterOptions, TargetOptions):
    """What to remove and when: the options of `LoRAPruneCallback`."""

    scores: str | None = None
    """scores.safetensors of an earlier run on the same model; units are ranked by these scores instead of being scored again"""
    sparsity: str | int | None = None  # YAML makes an int of an unquoted 2:4, which is refused by name
    """set single weights to zero instead of removing units, so that shapes do not change: `unstructured` (with --ratio), or N:M such as
    2:4 or 4:8, which keeps N of every M neighbouring inputs"""
    round: int = 8
    """make FFN widths multiples of N; 1 gives the exact ratio, 32 or more suits quantised GGUF files"""
    kinds: str = "auto"
    """kinds of units to prune, which --ratio refers to: `attention`, `ffn`, attention,ffn or `all`. query,ffn removes single query heads,
    the same number of every key-value head, instead of key-value heads with their query heads. auto: all kinds, or with equal widths in
    all layers only those that a stock checkpoint can store (GPT-2's stores fewer channels, but not fewer heads); query heads only where
    all share one key-value head"""
    criterion: CriterionName = "auto"
    """how units are scored: wanda or flap (activations), lora (the paper's Eq 10), sketch (an improved lora), gradient (true gradient of
    the weights), gate (Fisher information of a gate per unit), taylor or movement (first-order gate), reap (whole experts: router's gate
    times size of the output), magnitude, random. auto: wanda, or lora with --sparsity"""
    power: Literal[1, 2] = 2
    """exponent of the saliencies: 2 squares them (the paper), 1 takes absolute values (the authors' code)"""
    normalize: bool = False
    """divide the unit scores of each projection by their L2 norm before adding them (as the authors' code does, and the paper does not)"""
    decay: float = 0.9
    """decay of the moving average of scores (lambda in the paper), from 0 to below 1"""
    score_steps: Literal["remembered", "all"] = "remembered"
    """steps that are scored. remembered: those whose scores still have 1 % of their weight at the next removal, by --decay. all: every
    step, as in the paper"""
    allocation: Literal["auto", "measured", "searched", "uniform", "balanced", "paper", "global"] = "auto"
    """how removal is distributed over the layers. uniform (same ratio of heads and channels), balanced (split by score) and measured
    (the split that changes the outputs on calibration rows least; needs --schedule oneshot) give all layers equal widths, so that the
    model loads anywhere. So does searched: it also tries query heads instead of key-value heads, and with --depth fewer layers; the best
    four shapes are reconstructed for a few steps before one is chosen. paper (the first tenth and the last layer are not pruned) and
    global (one ranking over the model) give every layer its own width. auto: measured with --schedule oneshot, else uniform;
    always uniform with FSDP and with --base streamed"""
    depth: bool = False
    """also remove whole layers where that costs less; the remaining layers are renumbered. With --allocation measured or searched, the
    layers whose removal changes the outputs on calibration rows least, and as many as leave the outputs nearest; with balanced, those
    with low scores"""
    compensate: bool | None = None
    """after each removal, least-squares reconstruction of the projections that read the removed units, on training rows; by default
    wherever possible (not with convolutions, --sparsity or FSDP)"""
    local: int = 0
    """steps of blockwise reconstruction after each removal: every block that lost units is trained to reproduce its earlier output; 0
    for none; units shared by several layers get --compensate only"""
    local_all: bool = False
    """with --local, also train the blocks above the first pruned one that lost no units"""
    end_to_end: int | None = None
    """steps of end-to-end reconstruction after each removal: all projections are trained to reproduce the outputs of the model before the
    removal, on 256 calibration tokens a step; 0 for none; by default three passes over --calibration, or one if training follows
    and the outputs are near, wherever possible (not with --sparsity or FSDP)"""
    calibration: int = 32768
    """tokens used by --compensate, --local and --end-to-end"""
    history: bool = False
    """write the scores before every removal to scores_history.safetensors, from which `loraprune compare` plots how criteria agree"""
    schedule: Literal["auto", "cubic", "linear", "oneshot"] = "auto"
    """how the removed fraction grows with the steps. auto: oneshot, or cubic with --sparsity"""
    interval: int | None = None
    """optimiser steps between two removals; by default 10, or fewer in short runs"""
    warmup: Fraction | None = None
    """fraction of the steps before the first removal; by default 0 for oneshot and 0.1 for other schedules"""
    cooldown: Fraction | None = None
    """fraction of the steps after the last removal; by default 0.1, and for oneshot half of the steps after the warm-up. In oneshot runs of
    20 steps or more without --warmup, it is 0.9 if the first tenth of the steps lowers the loss on calibration rows by less than 0.1"""
    shrink: bool = True
    """cut the model at each removal, which makes later steps faster; false only masks units until the end, with the same result"""

    def __post_init__(self) -> None:
        """Check the options. One who writes this class, not one that adds a run's, writes Python: errors speak of arguments."""
        if type(self) is not LoRAPruneConfig:
            super().__post_init__()
            return
        given = {one.name: value for one in fields(self) if (value := getattr(self, one.name)) != one.default}
        with spoken_in_python(given, LoRAPruneConfig):
            self._read(given)
            super().__post_init__()

    @property
    def changed(self) -> tuple[Literal["in", "out"], ...]:
        """Return the sides of projections whose frozen weights are not the dense model's: those that recovery or the adapter changes."""
        if self.sparsity:
            return ()
        both = self.local or self.end_to_end != 0 or self.adapter in SPLITTING
        return ("in", "out") if both else ("in",) if self.compensate else ()

    @property
    def measures_split(self) -> bool:
        """Return whether calibration rows decide how many heads and how many channels are removed."""
        return self.chosen_allocation in MEASURED and not self.has_dimensions

    @property
    def searches(self) -> bool:
        """Return whether shapes are compared after recovery, those with fewer query heads too."""
        return self.chosen_allocation == "searched" and not self.has_dimensions

    @property
    def layers_option(self) -> str | None:
        """Return the option with which whole layers may be removed, as typed; None without one."""
        return "--depth true" if self.depth else None if self.layers is None else f"--layers {self.layers}"

    @property
    def measures(self) -> bool:
        """Return whether calibration rows decide what is removed: how many heads, channels and layers, or which layers."""
        return self.measures_split or self.layers is not None

    @property
    def recovers(self) -> bool:
        """Return whether a removal needs calibration rows: to decide what goes, or to recover afterwards."""
        return not self.sparsity and (bool(self.local or self.compensate) or self.end_to_end != 0 or self.measures)

    @property
    def chosen_criterion(self) -> CriterionName:
        """Return the criterion, with `auto` resolved."""
        if self.criterion != "auto":
            return self.criterion
        return "lora" if self.sparsity else "wanda"

    @property
    def chosen_allocation(self) -> str:
        """Return the allocation, with `auto` resolved."""
        if self.allocation != "auto":
            return self.allocation
        is_free = self.chosen_schedule == "oneshot" and not self.has_dimensions and self.speedup is None
        return "measured" if is_free else "uniform"

    @property
    def chosen_schedule(self) -> ScheduleName:
        """Return the schedule, with `auto` resolved."""
        if self.schedule != "auto":
            return self.schedule
        return "cubic" if self.sparsity else "oneshot"

    @property
    def fractions(self) -> tuple[float, float]:
        """Return the fractions of the steps before the first removal and after the last one."""
        once = self.chosen_schedule == "oneshot"
        warmup = self.warmup if self.warmup is not None else 0.0 if once else 0.1
        # A single removal: before it the dense model adapts to the data, which it does better than a pruned one (docs/log.md).
        cooldown = 0.5 * (1 - warmup) if once else 0.1
        return warmup, cooldown if self.cooldown is None else self.cooldown

    @property
    def may_remove_early(self) -> bool:
        """Return whether the first steps decide when all units are removed at once; the user has given no step."""
        return self.chosen_schedule == "oneshot" and self.cooldown is None and not self.warmup

    def problems(self) -> list[str]:
        """Return one sentence for every option that is wrong."""
        return [*super().problems(), *self._wrong_numbers(), *self._conflicts(), *self._sparsity_problems()]

    def _named_kinds(self) -> list[str]:
        """Return the kinds that --kinds names."""
        return [] if self.kinds in ("auto", "all") else [kind.strip() for kind in self.kinds.split(",")]

    def _unknown_kinds(self) -> list[str]:
        """Return what --kinds names and no model has."""
        return [kind for kind in self._named_kinds() if kind not in KINDS]

    def _wrong_numbers(self) -> list[str]:
        """Return one sentence for every option whose own value is wrong."""
        return failed(
            (
                not (odd := self._unknown_kinds()),
                f"--kinds {self.kinds}: unknown kind {''.join(odd[:1])!r}{nearest(''.join(odd[:1]), KINDS)}; known are {', '.join(KINDS)}",
            ),
            (self.round > 0, f"--round {self.round}: at least 1 is needed"),
            (0 <= self.decay < 1, f"--decay {self.decay}: a number in [0, 1) is needed, such as 0.9"),
            (
                self.end_to_end is None or self.end_to_end >= 0,
                f"--end-to-end {self.end_to_end}: 0 or a number of steps is needed, such as 100",
            ),
            (
                self.local >= 0,
                f"--local {self.local}: 0 or a number of steps is needed, such as 200",
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
        )

    def _conflicts(self) -> list[str]:
        """Return one sentence for every option that another one rules out."""
        return failed(
            (
                not {"attention", "query"} <= set(self._named_kinds()),
                f"--kinds {self.kinds}: one run removes key-value heads (attention) or query heads; name one of the two, and prune the "
                "folder once more for the other",
            ),
            (
                self.layers_option is None or "query" not in self._named_kinds(),
                f"--kinds {self.kinds} {self.layers_option}: a layer goes with its key-value heads; use attention instead of query",
            ),
            (
                self.local > 0 or not self.local_all,
                f"--local-all true --local {self.local}: no block is trained without steps; give --local 200",
            ),
            (
                sum(self.fractions) < 1,
                f"--warmup {self.fractions[0]} --cooldown {self.fractions[1]}: they must sum to < 1",
            ),
            (
                self.allocation not in MEASURED or self.chosen_schedule == "oneshot",
                f"--allocation {self.allocation} --schedule {self.schedule}: the split is measured once; use --schedule oneshot",
            ),
            (
                self.allocation != "searched" or self.compensate is not False or self.end_to_end != 0,
                "--allocation searched --compensate false --end-to-end 0: shapes are compared after reconstruction, and nothing is "
                "reconstructed; use --allocation measured",
            ),
            (
                not self.depth or (self.chosen_allocation in (*MEASURED, "balanced") and not self.has_dimensions),
                f"--depth true: give --allocation measured or balanced (now {self.chosen_allocation}) and a ratio or size instead of "
                "explicit widths; --layers sets a number of layers",
            ),
            (
                self.layers is None or self.chosen_schedule == "oneshot",
                f"--layers {self.layers} --schedule {self.schedule}: the layers are chosen once; use --schedule oneshot",
            ),
            (
                self.layers_option is None or self.adapter != "dora",
                f"{self.layers_option} --adapter dora: a layer without units leaves DoRA no norms to divide by; use lora or rslora",
            ),
            (
                self.speedup is None or self.chosen_allocation in ("uniform", "paper"),
                f"--speedup {self.speedup} --allocation {self.allocation}: scores would change the shape that was timed; use uniform or "
                "paper",
            ),
            (
                self.memory is None or self.allocation != "global",
                f"--memory {self.memory} --allocation global: scores decide how many heads stay, and so how large the cache is; use "
                "uniform, measured, searched, balanced or paper",
            ),
        )

    def idle(self) -> list[str]:
        """Return one sentence for every option that is given and changes nothing beside the others."""
        found = super().idle()
        if self.chosen_schedule == "oneshot":
            found += idle_options(self, "--schedule oneshot removes all units at once", "interval")
        if self.scores:
            ranking = ("criterion", "power", "normalize", "decay", "score_steps", "history")
            found += idle_options(self, f"units are ranked by --scores {self.scores}", *ranking)
        if self.has_dimensions:
            found += idle_options(self, "explicit widths are given", *(("round",) if self.ffn_ratio is None else ()))
            if self.allocation in ("balanced", *MEASURED):
                found += idle_options(self, "explicit widths are given", "allocation")
        if self.sparsity or not (self.compensate is not False or self.recovers):
            found += idle_options(self, "nothing is reconstructed after a removal", "calibration")
        return found

    def _sparsity_problems(self) -> list[str]:
        if self.sparsity is None:
            return []
        odd = [name for name in UNIT_OPTIONS if getattr(self, name) != getattr(LoRAPruneConfig, name)]
        found = [
            f"--sparsity {self.sparsity} --{dashed(name)} {as_typed(getattr(self, name))}: --{dashed(name)} is about units, and --sparsity "
            "removes none; leave one of the two out"
            for name in odd
        ]
        if self.adapter not in PLAIN:
            found.append(
                f"--sparsity {self.sparsity} --adapter {self.adapter}: zeros would change the weights that {self.adapter} starts from or "
                "their norms; use --adapter lora or rslora"
            )
        return [*found, *pattern_problems(self.sparsity, self.ratio, default=LoRAPruneConfig.ratio)]
