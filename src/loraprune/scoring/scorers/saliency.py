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
from loraprune.models.quantised.forms import weight_rows
from loraprune.runtime.sharding import gathered, is_shard
from loraprune.scoring.base import Kept
from loraprune.scoring.criteria import Saliency, Tile
from loraprune.scoring.scorers.elementwise import Rows, side_sums, to_cpu, unit_totals, wanted_sides, working_dtype


class SaliencyScorer:
    """Reduces an elementwise criterion tile by tile to row and column sums, and these to units."""

    def __init__(
        self, criterion: Saliency, model: nn.Module, groups: Sequence[Group], *, power: int, normalize: bool, seed: int
    ) -> None:
        self.criterion, self.model, self.groups = criterion, model, tuple(groups)
        self.power, self.normalize = power, normalize
        self.generator = torch.Generator().manual_seed(seed)
        self._modules = {path: find_module(model, path) for path in linear_paths(groups)}

    @torch.no_grad()
    def collect(self, kept: Kept | None = None) -> Mapping[str, Float[Tensor, " units"]]:
        """Return the power-transformed saliencies, summed over the weights that each unit owns."""
        scores = {}
        for group in self.groups:
            sums = {path: self._sums(group, path) for path in linear_paths([group])}
            left = kept[group.name] if kept else None
            scores[group.name] = unit_totals(group, sums, kept=left, normalize=self.normalize)
        return to_cpu(scores)

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
        self.groups = tuple(groups)

    def close(self) -> None:
        """Do nothing: there are no hooks."""


def saliency_sums(
    criterion: Saliency, proj: Projection, generator: torch.Generator, *, power: int, wanted: set[Side]
) -> dict[Side, Float[Tensor, " entries"]]:
    """Return the sums of a criterion's saliencies by row and by column, from its fused form where it has one."""
    if criterion.fused is None:
        return side_sums(proj, saliency_rows(criterion, proj, generator), power=power, wanted=wanted)
    whole = make_tile(criterion, proj, generator)
    out, in_ = criterion.fused(whole, power=power, rows="out" in wanted, columns="in" in wanted)
    found: dict[Side, Tensor | None] = {"out": out, "in": None if in_ is None else proj.by_channel(in_)}
    return {side: values for side, values in found.items() if values is not None}


def make_tile(criterion: Saliency, proj: Projection, generator: torch.Generator) -> Tile:
    """Return a whole projection as one tile, its frozen weight as it is stored, quantised or not."""
    dtype = working_dtype(proj)
    a, b = (factor.to(dtype) for factor in proj.factors)
    grad_a, grad_b = (_gradient(criterion, each, proj.path).flatten(1).to(dtype) for each in (proj.lora_a, proj.lora_b))
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


def _gradient(criterion: Saliency, parameter: nn.Parameter, path: str) -> Tensor:
    if parameter.grad is not None:
        return parameter.grad.detach()
    if criterion.needs_gradient:
        raise ConfigError(
            f"the criterion {criterion.name!r} needs gradients, but LoRA on {path!r} has none: "
            "is the adapter frozen, or was the step skipped?"
        )
    return torch.zeros_like(parameter)
