"""The registry of criteria and their inputs.

A criterion is one function, of one of five kinds. A *saliency* reads a tile of one projection and its LoRA factors and
returns one number per weight; a *gradient* does so with the tile's true gradient. A *gate* reads the effect of each unit's
gate on the loss, an *activation* the inputs of a group's consuming projection; both return one number per unit or channel. A *routing*
reads what a router sends to an expert and what the expert returns.
Knows nothing about averaging, schedules or plans.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from loraprune.errors import ConfigError
from loraprune.models.quantised.forms import Weight
from loraprune.registry import Registry
from loraprune.scoring.kernels.factors import Factors


@dataclass(frozen=True, slots=True)
class Tile:
    """Some rows of one projection, W = W0 + scaling * B A, in float32 or wider.

    With DoRA it is the sum before its rows are multiplied by `factor`: that is what the gradients of A and B are about, and weight times
    gradient is the same before and after.
    """

    base: Weight
    """W0; of a whole projection as it is stored, of some rows of it always numbers"""
    a: Float[Tensor, "rank in_"]
    b: Float[Tensor, "rows rank"]
    grad_a: Float[Tensor, "rank in_"]
    grad_b: Float[Tensor, "rows rank"]
    whole_b: Float[Tensor, "whole rank"]
    """B with the rows of all tiles"""
    scaling: float
    generator: torch.Generator
    """the run's own source of randomness"""
    factor: Float[Tensor, " rows"] | None = None
    """what DoRA multiplies the rows of the sum by; None with plain LoRA, and where a whole projection is one tile"""

    def merged(self) -> Float[Tensor, "rows in_"]:
        """Return W, a new tensor."""
        assert isinstance(self.base, Tensor)
        return torch.addmm(self.base, self.b, self.a, alpha=self.scaling)


@dataclass(frozen=True, slots=True)
class Channels:
    """Statistics of one consuming projection's inputs over the tokens of an optimiser step, by input channel."""

    mean: Float[Tensor, " channels"]
    second_moment: Float[Tensor, " channels"]
    """mean of the square"""
    column_norm: Float[Tensor, " channels"]
    """squared L2 norm of the column of W that reads the channel"""


TileFunction: TypeAlias = Callable[[Tile], Float[Tensor, "rows in_"]]
PairFunction: TypeAlias = Callable[[Float[Tensor, "rows in_"], Float[Tensor, "rows in_"]], Float[Tensor, "rows in_"]]
GateFunction: TypeAlias = Callable[[Float[Tensor, "samples units"]], Float[Tensor, " units"]]
UnitFunction: TypeAlias = Callable[[Float[Tensor, " units"]], Float[Tensor, " units"]]
RoutingFunction: TypeAlias = Callable[[Float[Tensor, " routed"], Float[Tensor, " routed"]], Float[Tensor, " routed"]]
ChannelFunction: TypeAlias = Callable[[Channels], Float[Tensor, " channels"]]
Function = TypeVar("Function")
Sums: TypeAlias = tuple[Float[Tensor, "n out"] | None, Float[Tensor, "n in_"] | None]
"""sums over the rows and the columns of each of some projections"""


@runtime_checkable
class Fused(Protocol):
    """A saliency already reduced, for all projections of a shape and format at once: faster than tiles, never another result."""

    def __call__(self, weights: Sequence[Weight], factors: Factors, *, power: int, rows: bool, columns: bool) -> Sums:
        """Return the row and the column sums of |saliency|^power, None where not wanted; weights are as they are stored."""


@dataclass(frozen=True, slots=True)
class Saliency:
    """A criterion on single weights that reads LoRA's factors and their gradients."""

    name: str
    function: TileFunction
    """tile -> signed saliencies, to which the configured power is applied"""
    fused: Fused | None = None
    needs_gradient: bool = True


@dataclass(frozen=True, slots=True)
class Gradient:
    """A criterion on single weights that reads the true gradient of W, which exists only for one tile at a time."""

    name: str
    function: PairFunction
    """tile of W, tile of dL/dW -> signed saliencies, to which the configured power is applied"""
    needs_gradient: bool = True


@dataclass(frozen=True, slots=True)
class Gate:
    """A criterion on the effect of a virtual gate m = 1 on each unit's output."""

    name: str
    function: GateFunction
    """dL/dm of every sample -> terms that are summed over the micro-batches of a step"""
    finish: UnitFunction
    """function of that sum at the end of the step"""
    needs_gradient: bool = True


@dataclass(frozen=True, slots=True)
class Activation:
    """A criterion on the inputs of the consuming projections; no gradient is needed."""

    name: str
    function: ChannelFunction
    """statistics -> scores, summed over the channels of a unit"""
    needs_gradient: bool = False


@dataclass(frozen=True, slots=True)
class Routing:
    """A criterion on whole experts; no gradient is needed."""

    name: str
    function: RoutingFunction
    """router's gate value and L2 norm of the expert's output, of every token and expert that it is routed to -> numbers, of which an
    expert scores the mean over its tokens"""
    needs_gradient: bool = False


Criterion: TypeAlias = Saliency | Gradient | Gate | Activation | Routing

criteria: Registry[Criterion] = Registry("criterion", ConfigError)


def register_saliency(
    name: str, *, needs_gradient: bool = True, fused: Fused | None = None
) -> Callable[[TileFunction], TileFunction]:
    """Register an elementwise criterion; with `needs_gradient=False` it also works before any training step."""
    return _registering(name, lambda function: Saliency(name, function, fused, needs_gradient))


def register_gradient(name: str) -> Callable[[PairFunction], PairFunction]:
    """Register an elementwise criterion on the weight and its true gradient."""
    return _registering(name, lambda function: Gradient(name, function))


def unchanged(sums: Float[Tensor, " units"]) -> Float[Tensor, " units"]:
    """Return its argument."""
    return sums


def register_gate(name: str, *, finish: UnitFunction = unchanged) -> Callable[[GateFunction], GateFunction]:
    """Register a criterion on the gates' effects; `finish` is applied to the sum over a step."""
    return _registering(name, lambda function: Gate(name, function, finish))


def register_activation(name: str) -> Callable[[ChannelFunction], ChannelFunction]:
    """Register a criterion on activations alone."""
    return _registering(name, lambda function: Activation(name, function))


def register_routing(name: str) -> Callable[[RoutingFunction], RoutingFunction]:
    """Register a criterion on whole experts, from the gate values and the sizes of their outputs."""
    return _registering(name, lambda function: Routing(name, function))


def _registering(name: str, describe: Callable[[Function], Criterion]) -> Callable[[Function], Function]:
    """Return a decorator that registers `describe(function)` and returns the function unchanged."""

    def register(function: Function) -> Function:
        criteria.add(name, describe(function))
        return function

    return register
