"""Recovery after a removal: least-squares, blockwise and end-to-end reconstruction; what does not help on rows kept aside is undone.

Knows nothing about scores or schedules.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from loraprune.groups import Group
from loraprune.models.adapters import linear_paths
from loraprune.pruning.recovery.blockwise import BlockOptions, Scales, fit_blocks_
from loraprune.pruning.recovery.changes import learning, start_changes, undoing
from loraprune.pruning.recovery.compensation import Gain, Refit, apply_refits_
from loraprune.pruning.recovery.end_to_end import Distance, Outputs, default_steps, learn_outputs_
from loraprune.pruning.recovery.finished import Finished, digest
from loraprune.pruning.recovery.rows import Rows
from loraprune.pruning.recovery.snapshot import Snapshot
from loraprune.pruning.recovery.trace import Trace

FAR = math.log(2)
"""rise of the loss, in nats, that is reported as damage: a perplexity twice as high"""

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Recovery:
    """Cost of one removal, and gain of each step of recovery, on calibration rows kept aside."""

    losses: dict[str, float] = field(default_factory=dict)
    """loss of the whole model: `before` the removal, once units are `removed`, `refitted`, once `blocks` are trained, and `end_to_end`"""
    errors: dict[str, float] = field(default_factory=dict)
    """by the same names, how far the outputs are from those before the removal: a divergence in nats a token, or, without a vocabulary,
    a relative squared error"""
    refits: dict[str, Gain] = field(default_factory=dict)
    blocks: dict[str, Gain] = field(default_factory=dict)
    undone: list[str] = field(default_factory=list)
    """steps that raised the loss of the whole model: nothing of them is left"""

    def note(self, step: str, distance: Distance) -> None:
        """Record the model's loss and distance after a step."""
        self.losses[step], self.errors[step] = distance.loss, distance.error

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Recovery:
        """Read what `to_json` gave."""
        gains = {name: {path: Gain(**each) for path, each in values[name].items()} for name in ("refits", "blocks")}
        losses = {name: math.nan if loss is None else float(loss) for name, loss in values["losses"].items()}
        return cls(losses, dict(values["errors"]), gains["refits"], gains["blocks"], list(values["undone"]))

    def to_json(self) -> dict[str, Any]:
        """Return the entry of report.json; None for losses that are not known."""
        losses = {name: loss if math.isfinite(loss) else None for name, loss in self.losses.items()}
        return asdict(self) | {"losses": losses}


@dataclass(frozen=True, slots=True)
class Steps:
    """The steps of recovery after a removal."""

    refits: Mapping[str, Refit]
    """solved before the removal; empty for none"""
    trace: Trace | None
    """the reading projections' outputs before the removal, as targets of the blocks"""
    outputs: Outputs
    """the model's outputs before the removal"""
    blocks: int
    """steps of every block with a group in `changed`; 0 for none"""
    end_to_end: int | None
    """steps of end-to-end reconstruction; 0 for none, None for `default_steps`"""
    changed: Collection[str]
    scales: Scales
    seed: int
    is_tuned: bool
    """whether the model is trained further afterwards"""
    folder: Path | None = None
    """folder of trained blocks, so that a run that is stopped meanwhile does not train them again"""


def recover_(
    model: nn.Module,
    groups: Sequence[Group],
    kept: Mapping[str, Sequence[int]],
    rows: Rows,
    steps: Steps,
    recovery: Recovery,
) -> None:
    """Recover a model that lost units, and record in `recovery` the gain of each step.

    `kept` holds indices into the units of `groups`.
    """
    recovery.note("removed", steps.outputs.distance(model))
    if steps.refits:
        recovery.refits = {path: one.gain for path, one in steps.refits.items()}
        with undone_if_worse(Snapshot(model, steps.refits).restore_, model, steps.outputs, recovery, "refitted"):
            apply_refits_(model, groups, kept, steps.refits)
    if steps.blocks and steps.trace:
        undo = Snapshot(model, linear_paths(groups)).restore_
        with undone_if_worse(undo, model, steps.outputs, recovery, "blocks"):
            about = {
                "kept": dict(kept),
                "steps": steps.blocks,
                "seed": steps.seed,
                "refit": bool(steps.refits),
                "removed": recovery.errors["removed"],
            }
            finished = Finished(steps.folder, digest(steps.trace, about)) if steps.folder else None
            options = BlockOptions(steps.scales, steps.blocks, steps.seed, finished)
            recovery.blocks = fit_blocks_(model, groups, steps.changed, steps.trace, rows, options)
    if steps.end_to_end != 0:
        _reproduce_outputs(model, groups, steps, recovery)
    _report(recovery)


def _reproduce_outputs(model: nn.Module, groups: Sequence[Group], steps: Steps, recovery: Recovery) -> None:
    """Train low-rank changes end to end, and add them to the weights if they help."""
    changes = start_changes(model, groups, seed=steps.seed)
    undo, count = undoing(model, changes), steps.end_to_end
    if count is None:
        error = list(recovery.errors.values())[-1]
        count = default_steps(steps.outputs, error=error, is_tuned=steps.is_tuned)
    with learning(changes), undone_if_worse(undo, model, steps.outputs, recovery, "end_to_end"):
        learn_outputs_(model, changes, steps.outputs, steps=count, seed=steps.seed)


@contextmanager
def undone_if_worse(
    undo: Callable[[], None], model: nn.Module, outputs: Outputs, recovery: Recovery, step: str
) -> Iterator[None]:
    """Undo a step of recovery if the outputs are further away afterwards."""
    earlier = list(recovery.errors)[-1]
    yield
    recovery.note(step, outputs.distance(model))
    if not recovery.errors[step] < recovery.errors[earlier]:  # NaN is not less either
        undo()
        recovery.undone.append(step)
        recovery.errors[step], recovery.losses[step] = recovery.errors[earlier], recovery.losses[earlier]


def _report(recovery: Recovery) -> None:
    """Log the result of recovery, and warn of a removal that it could not compensate."""
    losses = recovery.losses
    before, after = losses.get("before", math.nan), list(losses.values())[-1]
    steps = {"least-squares fits": recovery.refits, "blocks": recovery.blocks}
    helped = [
        f"{sum(gain.kept for gain in gains.values())} of {len(gains)} {name}" for name, gains in steps.items() if gains
    ]
    if helped:
        logger.info(
            "recovery: %s helped; on rows kept aside: distance from the dense model's outputs %s; loss %s",
            ", ".join(helped), _arrow(recovery.errors), _arrow(losses),
        )  # fmt: skip
    for step in recovery.undone:
        logger.warning("recovery: the step %r moved the outputs further from the dense model's and was undone", step)
    if after - before > FAR:
        logger.warning(
            "the removal raised the loss from %.2f to %.2f: the perplexity is %.1f times as high. Fine-tuning may not recover it; "
            "remove less, or give more tokens of --calibration", before, after, math.exp(min(700.0, after - before)),
        )  # fmt: skip


def _arrow(losses: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in losses.items())
