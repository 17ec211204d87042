"""The registry of criteria and the data they see.

A criterion is one function, of one of two kinds. A *saliency* looks at a tile of one projection and its LoRA factors and
gives one number per weight. A *gate* looks at what flows into a group's consuming projection and gives one number per unit.
Knows nothing about averaging, schedules or plans.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from loraprune.errors import ConfigError
from loraprune.registry import Registry


@dataclass(frozen=True, slots=True)
class Tile:
    """Some rows of one projection, W = W0 + scaling * B A, in float32 or wider."""

    base: Float[Tensor, "rows in_"]
    a: Float[Tensor, "rank in_"]
    b: Float[Tensor, "rows rank"]
    grad_a: Float[Tensor, "rank in_"]
    grad_b: Float[Tensor, "rows rank"]
    scaling: float
    generator: torch.Generator
    """the run's own source of randomness"""

    def merged(self) -> Float[Tensor, "rows in_"]:
        """Return W, a new tensor."""
        return torch.addmm(self.base, self.b, self.a, alpha=self.scaling)


Saliency: TypeAlias = Callable[[Tile], Tensor]
"""tile -> (rows, in) signed saliencies, to which the configured power is applied"""


@runtime_checkable
class Fused(Protocol):
    """A saliency already reduced, for a whole projection at once: faster than tiles, never another result."""

    def __call__(self, tile: Tile, *, power: int, rows: bool, columns: bool) -> tuple[Tensor | None, Tensor | None]:
        """Return the row and the column sums of |saliency|^power, None where not wanted; `base` has its stored dtype here."""


Gate: TypeAlias = Callable[[Tensor, Tensor, int], Tensor]
"""input z of a consuming projection (batch, seq, channels), its gradient, units -> (units,) scores, summed over the batch"""


@dataclass(frozen=True, slots=True)
class Criterion:
    """A named way to score units."""

    name: str
    kind: Literal["saliency", "gate"]
    saliency: Saliency | None = None
    fused: Fused | None = None
    gate: Gate | None = None
    needs_gradient: bool = True


criteria: Registry[Criterion] = Registry("criterion", ConfigError)


def register_saliency(
    name: str, *, needs_gradient: bool = True, fused: Fused | None = None
) -> Callable[[Saliency], Saliency]:
    """Register an elementwise criterion; with `needs_gradient=False` it also works before any training step."""

    def register(function: Saliency) -> Saliency:
        criteria.add(name, Criterion(name, "saliency", function, fused, needs_gradient=needs_gradient))
        return function

    return register


def register_gate(name: str) -> Callable[[Gate], Gate]:
    """Register a criterion on activations and their gradients."""

    def register(function: Gate) -> Gate:
        criteria.add(name, Criterion(name, "gate", gate=function))
        return function

    return register
