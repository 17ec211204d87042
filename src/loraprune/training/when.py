"""When a run that removes all units at once does so: early if the first steps teach the dense model little, else as the schedule says.

Where training still gains much, the dense model adapts to the data better than a pruned one would, and a late removal aims at a tuned
model. Where it gains little, every step before the removal is one that the pruned model lacks. docs/log.md has the measurements.
"""

from __future__ import annotations

import logging
import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from loraprune.models.adapters import base_model, no_cache
from loraprune.models.modes import dropout_off
from loraprune.pruning.recovery.rows import LABELS, Rows, on_device, rows_aside
from loraprune.pruning.schedule import Schedule
from loraprune.runtime.processes import from_first

LOOK = 0.1
"""fraction of the steps after which the gain is measured"""
STEPS_AT_LEAST = 20
"""shorter runs do not look: their first tenth is one step, in which the learning rate grows"""
GAIN = 0.1
"""fall of the loss over the first tenth, in nats, from which on a late removal is better; docs/log.md"""

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class When:
    """What a run has measured and decided so far."""

    before: float | None = None
    """loss of the dense model on calibration rows kept aside; None if it is not measured"""
    early: int | None = None
    """step of an early removal, if that was decided"""
    is_settled: bool = False

    def begin(self, schedule: Schedule, model: nn.Module, rows: Rows | None, *, step: int) -> Schedule:
        """Return the schedule of a training that begins or goes on at `step`; without `rows` it stays as it is."""
        look = int(LOOK * schedule.steps)
        if self.is_settled:
            return replace(schedule, early=self.early)
        if (
            rows is None
            or LABELS not in rows
            or schedule.steps < STEPS_AT_LEAST
            or look >= schedule.last
            or step > look
        ):
            self.is_settled = True
            return schedule
        if self.before is None:
            self.before = loss_aside(model, rows)
        return replace(schedule, look=look)

    def decide(self, schedule: Schedule, model: nn.Module, rows: Rows) -> Schedule:
        """Return the schedule with the step of the removal, once the first steps are done."""
        assert self.before is not None
        gain = from_first(self.before - loss_aside(model, rows))  # so that processes agree
        self.is_settled = True
        if gain < GAIN:
            self.early = schedule.look
        settled = replace(schedule, look=None, early=self.early)
        logger.info(
            "step %d: training has lowered the dense model's loss by %.3f nats; all units are removed after step %d",
            schedule.look, gain, settled.last,
        )  # fmt: skip
        return settled

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return asdict(self)


@torch.no_grad()
def loss_aside(model: nn.Module, rows: Rows) -> float:
    """Return a model's mean loss over the calibration rows kept aside; NaN if it gives none."""
    aside = rows_aside(len(next(iter(rows.values())))).nonzero().flatten()
    base, total = base_model(model), 0.0
    with dropout_off(model):
        for place in aside.tolist():
            row = on_device(model, {name: values[place : place + 1] for name, values in rows.items()})
            loss = base(**(row | no_cache(model))).get("loss")
            total += math.nan if loss is None else float(loss)
    return total / len(aside)
