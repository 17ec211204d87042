"""Schedules: the fraction of the final removal that must be done after each optimiser step.

Knows nothing about models: it maps a step to a number between 0 and 1.
"""

from __future__ import annotations

from dataclasses import dataclass

from loraprune.config.pruning import ScheduleName

INTERVAL = 10
"""steps between two removals, unless another number is asked for; source: the authors' code"""
REMEMBERED = 0.01
"""share of its first weight with which the scores of a step still count for something"""
EVENTS_AT_LEAST = 16
"""a short run prunes at least this often if its steps allow, unless an interval is asked for"""


@dataclass(frozen=True, slots=True)
class Schedule:
    """Progress of pruning over a run of `steps` optimiser steps, from 0 (nothing removed) to 1 (the target)."""

    name: ScheduleName
    steps: int
    interval: int | None
    warmup: float
    cooldown: float
    look: int | None = None
    """step after which it is decided whether the only removal is due at once; None if that is settled"""
    early: int | None = None
    """step after which everything is removed, where that was decided"""

    @property
    def first(self) -> int:
        """Return the step after which pruning may begin."""
        return min(int(self.warmup * self.steps), self.last - 1)

    @property
    def last(self) -> int:
        """Return the step after which the target is reached."""
        return self.early or max(1, self.steps - int(self.cooldown * self.steps))

    @property
    def stride(self) -> int:
        """Return the steps between two events: as asked for, or the paper's, shortened for runs left with few."""
        return self.interval or max(1, min(INTERVAL, (self.last - self.first) // EVENTS_AT_LEAST))

    def progress(self, step: int) -> float:
        """Return the fraction of the removal that is due after `step` steps.

        Source: Zhu and Gupta, To prune, or not to prune (arXiv 1710.01878), the gradual schedule with s_i = 0 and s_f = 1.
        """
        if step >= self.last:
            return 1.0
        if step <= self.first or self.name == "oneshot":
            return 0.0
        left = 1 - (step - self.first) / (self.last - self.first)
        return 1 - left ** (3 if self.name == "cubic" else 1)

    def is_remembered(self, step: int, decay: float) -> bool:
        """Return whether a moving average that forgets by `decay` still knows the scores of a step at the next removal."""
        return decay ** max(0, self.next_event(step) - step) >= REMEMBERED

    def next_event(self, step: int) -> int:
        """Return the first step from `step` on after which units are or may be removed; the last such step if there is none."""
        if self.look is not None and step <= self.look:
            return self.look
        if self.name == "oneshot":
            return self.last
        strides = max(1, -(-(step - self.first) // self.stride))
        return min(self.last, self.first + strides * self.stride)

    def is_event(self, step: int) -> bool:
        """Return whether units are removed after `step` steps; the last event is exactly at `last`."""
        return step == self.next_event(step) != self.look
