"""A criterion on single weights and LoRA's factors, computed after the last backward pass of a step.

Knows nothing about averaging or plans.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from loraprune.errors import ConfigError
from loraprune.groups import Group, Side
from loraprune.models.adapters import Projection, find_module, linear_paths, projection_of
from loraprune.models.quantised.forms import Weight, weight_rows
from loraprune.runtime.sharding import gathered, is_shard
from loraprune.scoring.base import Kept, Scores
from loraprune.scoring.criteria import Saliency, Tile
from loraprune.scoring.kernels.factors import Factors
from loraprune.scoring.scorers.batches import Alike, Batch, find_batches
from loraprune.scoring.scorers.elementwise import Rows, precise, side_sums, unit_totals, wanted_sides, working_dtype


class SaliencyScorer:
    """Reduces an elementwise criterion tile by tile to row and column sums, and these to units."""

    def __init__(
        self, criterion: Saliency, model: nn.Module, groups: Sequence[Group], *, power: int, normalize: bool, seed: int
    ) -> None:
        self.criterion, self.model, self.groups = criterion, model, tuple(groups)
        self.power, self.normalize = power, normalize
        self.generator = torch.Generator().manual_seed(seed)
        self._modules = {path: find_module(model, path) for path in linear_paths(groups)}
        self._batches: tuple[list[Batch], list[Alike]] | None = None
        """what is scored together, until units are removed"""

    @torch.no_grad()
    def collect(self, kept: Kept | None = None) -> Scores:
        """Return the power-transformed saliencies, summed over the weights that each unit owns."""
        if self.criterion.fused and kept is None and (self._batches or not self._is_sharded()):
            return precise(self._collect_batches())
        scores = {}
        for group in self.groups:
            sums = {path: self._sums(group, path) for path in linear_paths([group])}
            left = kept[group.name] if kept else None
            scores[group.name] = unit_totals(group, sums, kept=left, normalize=self.normalize)
        return precise(scores)

    def _is_sharded(self) -> bool:
        return any(is_shard(each) for each in next(iter(self._modules.values())).parameters())

    def _collect_batches(self) -> Scores:
        """Return the scores of all groups by a call for each shape and format of projections."""
        if self._batches is None:
            self._batches = find_batches(self._modules, self.groups)
        batches, alike = self._batches
        sums = [
            batch_sums(self.criterion, batch.projections, batch.weights(), power=self.power, wanted=batch.wanted)
            for batch in batches
        ]
        scores: dict[str, Tensor] = {}
        for each in alike:
            totals = each.totals(sums, normalize=self.normalize).unbind(0)
            scores.update(zip((group.name for group in each.groups), totals, strict=True))
        return scores

    def _sums(self, group: Group, path: str) -> dict[Side, Tensor]:
        module = self._modules[path]
        proj = projection_of(module, path)
        if not is_shard(proj.lora_a):
            return self._reduce(group, proj)
        with gathered(module):
            return self._reduce(group, projection_of(module, path))

    def _reduce(self, group: Group, proj: Projection) -> dict[Side, Tensor]:
        wanted = wanted_sides(group, proj.path)
        return saliency_sums(self.criterion, proj, self.generator, power=self.power, wanted=wanted)

    def forget(self) -> None:
        """Do nothing: gradients are read in place."""

    def listen(self, on: bool) -> None:
        """Do nothing: nothing is gathered before `collect`."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the random criterion's generator."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of `state_dict()`."""
        self.generator.set_state(state["generator"])

    def resize(self, groups: Sequence[Group]) -> None:
        """Use the groups of the smaller model from now on."""
        self.groups, self._batches = tuple(groups), None

    def close(self) -> None:
        """Do nothing: there are no hooks."""


def saliency_sums(
    criterion: Saliency, proj: Projection, generator: torch.Generator, *, power: int, wanted: set[Side]
) -> dict[Side, Float[Tensor, " entries"]]:
    """Return the sums of a criterion's saliencies by row and by column, from its fused form where it has one."""
    if criterion.fused is None:
        return side_sums(proj, saliency_rows(criterion, proj, generator), power=power, wanted=wanted)
    found = batch_sums(criterion, [proj], [proj.stored()], power=power, wanted=wanted)
    return {side: values[0] for side, values in found.items()}


def batch_sums(
    criterion: Saliency, projections: Sequence[Projection], weights: Sequence[Weight], *, power: int, wanted: set[Side]
) -> dict[Side, Float[Tensor, "n _entries"]]:
    """Return the sums of a fused criterion by row and by column, of projections of one shape and format."""
    assert criterion.fused is not None
    dtype = working_dtype(projections[0])
    factors_a, factors_b = tuple(proj.lora_a for proj in projections), tuple(proj.lora_b for proj in projections)
    grads_a = tuple(_gradient(criterion, proj, proj.lora_a) for proj in projections)
    grads_b = tuple(_gradient(criterion, proj, proj.lora_b) for proj in projections)
    stacks = (torch.stack(tensors) for tensors in (factors_a, factors_b, grads_a, grads_b))
    a, b, grad_a, grad_b = (tensors.flatten(2).to(dtype) for tensors in stacks)
    factors = Factors(a, b, grad_a, grad_b, projections[0].scaling)
    out, in_ = criterion.fused(weights, factors, power=power, rows="out" in wanted, columns="in" in wanted)
    found: dict[Side, Tensor | None] = {"out": out, "in": None if in_ is None else projections[0].by_channel(in_)}
    return {side: values for side, values in found.items() if values is not None}


def make_tile(criterion: Saliency, proj: Projection, generator: torch.Generator) -> Tile:
    """Return a whole projection as one tile, its frozen weight as it is stored, quantised or not."""
    dtype = working_dtype(proj)
    a, b = (factor.to(dtype) for factor in proj.factors)
    grad_a, grad_b = (_gradient(criterion, proj, each).flatten(1).to(dtype) for each in (proj.lora_a, proj.lora_b))
    return Tile(proj.stored(), a, b, grad_a, grad_b, b, proj.scaling, generator)


def saliency_rows(criterion: Saliency, proj: Projection, generator: torch.Generator) -> Rows:
    """Return the function that computes rows of a criterion's saliencies from the factors and gradients as they are now."""
    whole = make_tile(criterion, proj, generator)

    def rows(start: int, stop: int) -> Tensor:
        base = weight_rows(whole.base, start, stop).to(whole.a.dtype)
        factor = None if proj.magnitude is None else proj.row_factors(start, stop)
        return criterion.function(
            replace(whole, base=base, b=whole.b[start:stop], grad_b=whole.grad_b[start:stop], factor=factor)
        )

    return rows


def _gradient(criterion: Saliency, proj: Projection, factor: nn.Parameter) -> Tensor:
    grad = factor.grad
    if grad is not None:
        return grad
    if criterion.needs_gradient:
        raise ConfigError(
            f"the criterion {criterion.name!r} needs gradients, but LoRA on {proj.path!r} has none: "
            "is the adapter frozen, or was the step skipped?"
        )
    return torch.zeros_like(factor)
