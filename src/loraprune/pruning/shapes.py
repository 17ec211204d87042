"""The searched shape: shapes of equal size are tried with masks, the best of them with recovery, and the nearest one is kept.

Rankings may change with recovery, so they are taken after it. Nothing of a shape that was tried is left in the model.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

from loraprune.groups import HEADS
from loraprune.pruning.allocation import Counts
from loraprune.pruning.correlation import spearman
from loraprune.pruning.masking import Masks
from loraprune.pruning.recovery.changes import learning, start_changes, undoing
from loraprune.pruning.recovery.compensation import apply_refits_
from loraprune.pruning.recovery.end_to_end import learn_outputs_
from loraprune.pruning.recovery.recover import Recovery, undone_if_worse
from loraprune.pruning.recovery.snapshot import Snapshot
from loraprune.pruning.split import Trial, described, least, narrower_ones, shallower_ones, splits_of
from loraprune.pruning.target import Target
from loraprune.runtime.processes import from_first
from loraprune.runtime.progress import shown

FINALISTS = 4
"""shapes that are tried with recovery"""
SHARE = 32
"""each of them gets one step of end-to-end reconstruction for so many of the run's"""
STAGES = ("removed", "refitted", "end_to_end")
"""steps at which a shape is compared, as `Recovery` names them"""
WORDS = {"removed": "the removal", "refitted": "least-squares reconstruction", "end_to_end": "reconstruction"}

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class View:
    """The units that shapes are made of: with key-value heads, or with query heads."""

    target: Target
    trial: Trial

    @property
    def kind(self) -> str:
        """Return the kind of its heads; of a model without heads, its first kind."""
        kinds = [group.kind for group in self.target.groups]
        return next((kind for kind in kinds if kind in HEADS), kinds[0])


@dataclass(frozen=True, slots=True)
class Shape:
    """A shape that is tried."""

    view: View
    kind: str
    """the view's, or `layers` where some go"""
    counts: Counts
    found: Recovery = field(default_factory=Recovery)
    """its distance from the dense model's outputs, stage by stage"""

    @property
    def error(self) -> float:
        """Return its last distance, infinite for NaN."""
        error = list(self.found.errors.values())[-1]
        return error if math.isfinite(error) else math.inf

    @property
    def loses_heads(self) -> bool:
        """Return whether units of the view's kind go."""
        groups = self.view.target.groups
        return any(group.kind == self.view.kind and self.counts[group.name] < group.units for group in groups)

    @property
    def words(self) -> str:
        """Return what is kept, in words."""
        return described(self.view.target.space, self.counts)


@dataclass(frozen=True, slots=True)
class Found:
    """The result of a search."""

    place: int
    """of the view whose units are removed"""
    counts: Counts
    entry: dict[str, Any] | None
    """what the report says about the shapes; None where there was no choice"""


def search(views: Sequence[View], *, steps: int, seed: int) -> Found:
    """Return the shape whose outputs are nearest to the dense model's after recovery; the model stays as it is.

    Args:
        views: Key-value heads as units, and where they are tried query heads.
        steps: Steps of end-to-end reconstruction that the run will do after the removal; 0 for none.
        seed: Seed of the reconstruction.
    """
    began = time.perf_counter()
    tried = _masked(views)
    if len(tried) < 2:
        logger.info("shapes: this model has only one shape of the size that is asked for")
        return Found(0, views[0].target.counts, None)
    each = max(1, steps // SHARE) if steps else 0
    finalists = _finalists(tried)
    for shape in shown(finalists, "reconstructing shapes"):
        _recover(shape, steps=each, seed=seed)
    best = finalists[least([shape.error for shape in finalists])]
    place = next(place for place, view in enumerate(views) if view is best.view)
    entry = _entry(views[0].target, tried, finalists, best) | {
        "steps": each, "seconds": time.perf_counter() - began,
    }  # fmt: skip
    logger.info(
        "shapes: %d tried with masks and %d with reconstruction (%d steps each) in %.1f s; kept is %s: %s",
        len(tried), len(finalists), each, entry["seconds"], best.words, entry["reason"],
    )  # fmt: skip
    return Found(place, best.counts, entry)


def _masked(views: Sequence[View]) -> list[Shape]:
    """Return all shapes, their distance from the dense model's outputs measured with masks."""
    shapes: list[Shape] = []
    for view in views:
        found = _candidates(view)
        if shapes:  # without fewer heads it is a shape of the first view
            found = [shape for shape in found if shape.loses_heads]
        shapes += _distances(view, found)
    layers = [shape for shape in shapes if shape.kind == "layers"]
    if layers:  # the best number of layers, with other splits in those left
        best = layers[least([shape.error for shape in layers])]
        target = best.view.target
        more = [Shape(best.view, "layers", each) for each in narrower_ones(target.space, target.ratio, best.counts)]
        shapes += _distances(best.view, more)
    return shapes


def _candidates(view: View) -> list[Shape]:
    """Return the splits between heads and channels, and the numbers of layers."""
    target = view.target
    whole = [Shape(view, view.kind, counts) for counts in splits_of(target.space, target.ratio, target.counts)]
    return [
        *whole,
        *(Shape(view, "layers", counts) for counts in shallower_ones(view.trial, target.space, target.ratio)),
    ]


def _distances(view: View, shapes: Sequence[Shape]) -> list[Shape]:
    """Note the distance of every shape with masks alone."""
    found = replace(view.trial, compensate=False).distances([shape.counts for shape in shapes])
    for shape, distance in zip(shapes, found, strict=True):
        shape.found.note("removed", distance)
    return list(shapes)


def _finalists(tried: Sequence[Shape]) -> list[Shape]:
    """Return the nearest shapes, the nearest of every kind among them, by their distance with masks alone."""
    places = from_first(sorted(range(len(tried)), key=lambda place: tried[place].error))
    kinds = [tried[place].kind for place in places]
    first = [places[kinds.index(kind)] for kind in dict.fromkeys(kinds)]
    chosen = [*first, *(place for place in places if place not in first)][:FINALISTS]
    return [tried[place] for place in places if place in chosen]


def _recover(shape: Shape, *, steps: int, seed: int) -> None:
    """Note the distance of a shape after each step of recovery, as the run would do it; all of it is undone."""
    trial, found = shape.view.trial, shape.found
    model, groups, outputs = trial.model, trial.groups, trial.outputs
    kept, refits = trial.kept(shape.counts), trial.refits(shape.counts)
    masks, frozen = Masks(model, groups), Snapshot(model, refits)
    try:
        masks.set(kept)
        if refits:
            with undone_if_worse(frozen.restore_, model, outputs, found, "refitted"):
                apply_refits_(model, groups, kept, refits)
        if steps:
            changes = start_changes(model, groups, seed=seed)
            undo = undoing(model, changes)
            with learning(changes):
                with undone_if_worse(undo, model, outputs, found, "end_to_end"):
                    learn_outputs_(model, changes, outputs, steps=steps, seed=seed)
                undo()
    finally:
        masks.remove()
        frozen.restore_()


def _entry(target: Target, tried: Sequence[Shape], finalists: Sequence[Shape], best: Shape) -> dict[str, Any]:
    """Return what the report says about the shapes: `target` is what they are to reach."""
    prunable, last = target.space.budget.prunable, list(best.found.errors)[-1]
    first = finalists[0]  # the nearest with masks alone
    reason = f"after {WORDS[last]} its outputs are nearest to the dense model's (distance {best.error:.3f})"
    if best is not first:
        reason += f"; the shape that is nearest with masks alone ends at {first.error:.3f}"
    return {
        "reason": reason,
        "rank_correlation": list(_correlations(finalists)),
        "tried": [
            {
                "kind": shape.kind, "shape": shape.words, "ratio": _removed(shape) / prunable, "kept": shape is best,
                "losses": _finite(shape.found.losses), "errors": _finite(shape.found.errors),
            }
            for shape in sorted(tried, key=lambda one: (-len(one.found.errors), one.error))
        ],
    }  # fmt: skip


def _removed(shape: Shape) -> int:
    """Return the parameters that go with the units that a shape does not keep."""
    budget = shape.view.target.space.budget
    return budget.prunable - budget.kept(shape.counts)


def _finite(values: dict[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _correlations(finalists: Sequence[Shape]) -> Iterator[dict[str, Any]]:
    """Yield the rank correlation of the finalists' distances between each two stages that they have."""
    stages = [stage for stage in STAGES if all(stage in shape.found.errors for shape in finalists)]
    for one, other in combinations(stages, 2):
        pairs = [(shape.found.errors[one], shape.found.errors[other]) for shape in finalists]
        yield {"stages": [one, other], "spearman": spearman([a for a, _ in pairs], [b for _, b in pairs])}
