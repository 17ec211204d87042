"""Projections that are alike, scored by one call, and groups that are alike, whose units are added up by one sum.

Which are alike holds until units are removed, so it is found once in between. Knows nothing about criteria or averaging.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from loraprune.groups import Group, Side, Span
from loraprune.models.adapters import Projection, linear_paths, projection_of
from loraprune.models.quantised.forms import Int8Rows, Weight
from loraprune.scoring.scorers.elementwise import wanted_sides

LINEAR: tuple[Side, ...] = ("out", "in")
"""sides of spans that are scored"""


@dataclass(frozen=True, slots=True)
class Batch:
    """Projections of one shape and format, of which the same sums are wanted."""

    projections: Sequence[Projection]
    wanted: set[Side]
    dense: Sequence[Weight] | None
    """their weights; None for quantised ones, whose scales may be stored quantised too, and are read when they are needed"""

    def weights(self) -> Sequence[Weight]:
        """Return the frozen weights as they are stored."""
        return self.dense or [proj.stored() for proj in self.projections]


@dataclass(frozen=True, slots=True)
class Part:
    """Where the sums of one span are, for all groups of a class: consecutive rows of a batch's."""

    batch: int
    start: int
    span: Span


@dataclass(frozen=True, slots=True)
class Alike:
    """Groups with as many units, whose spans are alike."""

    groups: Sequence[Group]
    parts: Sequence[Part]

    def totals(
        self, sums: Sequence[Mapping[Side, Float[Tensor, "_n _entries"]]], *, normalize: bool
    ) -> Float[Tensor, "groups units"]:
        """Return each unit's share of the sums of all batches; as `unit_totals` does for a single group.

        Source: Eq 4; with `normalize`, each span's scores are divided by their L2 norm first, as in the authors' code.
        """
        total: Tensor | None = None
        for part in self.parts:
            span, units = part.span, self.groups[0].units
            entries = sums[part.batch][span.side][part.start : part.start + len(self.groups)]
            owned = entries[:, span.offset : span.offset + units * span.width]
            scores = owned if span.width == 1 else owned.unflatten(1, (units, span.width)).sum(2)
            if normalize:
                norm = scores.norm(dim=1, keepdim=True)
                scores = scores / torch.where(norm > 0, norm, torch.ones_like(norm))
            total = scores if total is None else total + scores
        assert total is not None
        return total


def find_batches(modules: Mapping[str, nn.Module], groups: Sequence[Group]) -> tuple[list[Batch], list[Alike]]:
    """Return the projections of groups, those that are alike together, and the groups likewise."""
    found = {path: projection_of(modules[path], path) for path in linear_paths(groups)}
    weights = {path: proj.stored() for path, proj in found.items()}
    forms = {path: _form(proj, weights[path]) for path, proj in found.items()}
    classes: dict[Hashable, list[Group]] = {}
    for group in groups:
        classes.setdefault(_likeness(group, forms), []).append(group)
    members: dict[Hashable, tuple[list[str], set[Side]]] = {}
    alike = []
    for same in classes.values():
        places = {}
        for row in zip(*(linear_paths([group]) for group in same), strict=True):
            wanted = wanted_sides(same[0], row[0]) & set(LINEAR)
            paths, _ = members.setdefault((forms[row[0]], frozenset(wanted)), ([], wanted))
            places[row[0]] = (list(members).index((forms[row[0]], frozenset(wanted))), len(paths))
            paths += row
        spans = (span for span in same[0].spans if span.side in LINEAR)
        alike.append(Alike(same, [Part(*places[span.module], span) for span in spans]))
    batches = []
    for paths, wanted in members.values():
        own = [weights[path] for path in paths]
        is_dense = isinstance(own[0], Tensor)
        batches.append(Batch([found[path] for path in paths], wanted, own if is_dense else None))
    return batches, alike


def _form(proj: Projection, weight: Weight) -> Hashable:
    """Return what projections that are scored by one call share."""
    shape, device = tuple(weight.shape), weight.device
    if isinstance(weight, Tensor):
        stored: Hashable = (weight.dtype, weight.stride())
    elif isinstance(weight, Int8Rows):
        stored = ("int8", weight.codes.stride())
    else:
        stored = ("nf4", weight.width)
    return shape, device, stored, proj.lora_a.dtype, tuple(proj.lora_a.shape), proj.scaling, proj.kernel


def _likeness(group: Group, forms: Mapping[str, Hashable]) -> Hashable:
    """Return what groups whose units are added up together share."""
    places = {path: place for place, path in enumerate(linear_paths([group]))}
    spans = (span for span in group.spans if span.side in LINEAR)
    return group.units, tuple(
        (places[span.module], span.side, span.width, span.offset, forms[span.module]) for span in spans
    )
