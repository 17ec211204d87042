"""Low-rank changes of frozen weights: learned beside them, and added to them afterwards.

The adapters have the rank that the user chose for training. Recovery needs more, and what it learns need not stay apart. Knows nothing
about targets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from loraprune.groups import Group
from loraprune.models.adapters import (
    base_layer,
    find_module,
    has_magnitudes,
    is_transposed,
    linear_paths,
    trained_factors,
)
from loraprune.models.quantised import kind_of

RANK = 64
"""largest rank of a change"""
RATE = 0.1
"""peak learning rate of a change's factors, times the square root of rank and width; docs/log.md compares values"""


@dataclass(frozen=True, slots=True)
class Change:
    """A change B A of a frozen weight W."""

    layer: nn.Module
    a: nn.Parameter
    """(rank, in)"""
    b: nn.Parameter
    """(out, rank)"""
    rate: float
    """peak learning rate of both factors"""

    def add(
        self, _: nn.Module, args: tuple[Float[Tensor, "*places in_"], ...], output: Float[Tensor, "*places out"]
    ) -> Float[Tensor, "*places out"]:
        """Add the change's part to the output of its layer; a forward hook."""
        reduced = functional.linear(args[0], self.a.to(args[0].dtype))
        return output + functional.linear(reduced, self.b.to(reduced.dtype))

    @torch.no_grad()
    def merge_(self) -> None:
        """Add the change to the frozen weight."""
        weight: Any = self.layer.weight
        change = self.b @ self.a
        weight += (change.T if is_transposed(self.layer) else change).to(weight.dtype)


@dataclass(frozen=True, slots=True)
class Site:
    """A frozen weight that can be changed."""

    layer: Any
    """an nn.Linear or a Conv1D"""
    out: int
    in_: int
    is_losing: bool
    """whether its outputs are units, which a cut removes"""

    @property
    def size(self) -> int:
        """Return the width of the side that loses no units."""
        return self.in_ if self.is_losing else self.out

    @property
    def rank(self) -> int:
        """Return the rank of its change."""
        return min(RANK, self.size)


def can_change(layer: nn.Module) -> bool:
    """Return whether a layer's weight is a matrix of numbers: a quantised one would round most of a small change away."""
    return isinstance(layer, nn.Linear | Conv1D) and kind_of(layer) is None and layer.weight.is_floating_point()


def start_changes(model: nn.Module, groups: Sequence[Group], *, seed: int) -> dict[str, Change]:
    """Return path -> change, zero at first, of every projection that can be changed.

    The factor on the side that loses no units is random and the other one is zero, so that masked and cut models start and learn alike.
    A step of Adam changes all entries of a factor by about one rate, so its spectral norm by rate * sqrt(entries); that of the random
    factor is about 1. So the weight's own step is alike at every width and rank.
    Source: Yang et al., A Spectral Condition for Feature Learning (arXiv 2310.17813).
    """
    found = {}
    for place, (path, site) in enumerate(find_sites(model, groups).items()):
        rank, size, weight = site.rank, site.size, site.layer.weight
        generator = torch.Generator().manual_seed(seed + place)
        drawn = torch.randn(rank, size, generator=generator) / math.sqrt(size)
        if site.is_losing:
            a, b = drawn, torch.zeros(site.out, rank)
        else:
            a, b = torch.zeros(rank, site.in_), drawn.T.contiguous()
        a, b = (nn.Parameter(factor.to(weight.device)) for factor in (a, b))
        found[path] = Change(site.layer, a, b, RATE / math.sqrt(rank * size))
    return found


def find_sites(model: nn.Module, groups: Sequence[Group]) -> dict[str, Site]:
    """Return path -> site of every projection whose frozen weight can be changed."""
    losing = {span.module for group in groups for span in group.spans if span.side == "out"}
    found = {}
    for path in linear_paths(groups):
        module = find_module(model, path)
        layer: Any = base_layer(module)
        # DoRA divides by the norms of the frozen weight's rows, which adding a change to it would move.
        if can_change(layer) and not has_magnitudes(module):
            out, in_ = layer.weight.shape[::-1] if is_transposed(layer) else layer.weight.shape
            found[path] = Site(layer, out, in_, path in losing)
    return found


def change_bytes(model: nn.Module, groups: Sequence[Group]) -> int:
    """Return the bytes of all changes while they are trained: factors, copies, gradients and two moments, in float32."""
    return 5 * 4 * sum(site.rank * (site.out + site.in_) for site in find_sites(model, groups).values())


def undoing(model: nn.Module, changes: MutableMapping[str, Change]) -> Callable[[], None]:
    """Return a function that drops the changes before they are added, and restores LoRA's factors that are trained in their place.

    So a reconstruction is undone exactly, without a copy of the frozen weights.
    """
    factors = {factor: factor.detach().clone() for factor in trained_factors(model, without=changes)}

    def undo() -> None:
        changes.clear()
        for factor, former in factors.items():
            factor.data.copy_(former)

    return undo


@contextmanager
def learning(changes: Mapping[str, Change]) -> Iterator[None]:
    """Let layers compute with their changes inside of the block; those that `changes` still holds at its end are added to the weights."""
    handles = [change.layer.register_forward_hook(change.add) for change in changes.values()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    for change in changes.values():
        change.merge_()
