"""Layers that repeat: a step is run with a few of them, and what all of them would take follows.

Layers that are alike keep and free alike, so that each further one moves all later operations by the same bytes. What lives at an
operation of a layer is then linear in the layer's place, and most at the first or at the last place. Knows nothing about groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, groupby
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import nn

KEPT = 3
"""periods that are run: the first and the last can differ from those between"""
LONGEST = 8
"""layers in a period"""
PLACES = ("layer_idx", "layer_id", "layer_index")
"""attributes that say where a layer is, not how it computes"""
BY_NUMBER = ("albert_layer_groups",)
"""lists whose layers a forward pass finds by number instead of going through all of them"""
PLAIN = (bool, int, float, str, type(None), torch.dtype)


@dataclass(frozen=True, slots=True)
class Trace:
    """What lives after every operation of a step, and its FLOPs."""

    phases: tuple[Int[np.ndarray, "_ kinds"], ...]
    """bytes of every kind, for each forward and each backward pass"""
    flops: int

    def peak(self) -> Int[np.ndarray, " kinds"]:
        """Return the bytes of every kind where their sum is first the largest."""
        every = np.concatenate(self.phases)
        found: Int[np.ndarray, " kinds"] = every[every.sum(1).argmax()]
        return found

    def grown(self, more: Trace, times: int) -> Trace | None:
        """Return the trace with `times` periods more, where `more` has one more; of its operations, those that can be the peak.

        None where the two do not show what a period takes: an operation of its layers is in only one of them, or takes other bytes.
        """
        phases = [_grown(own, longer, times) for own, longer in zip(self.phases, more.phases, strict=True)]
        if any(phase is None for phase in phases):
            return None
        return Trace(
            tuple(phase for phase in phases if phase is not None), self.flops + times * (more.flops - self.flops)
        )


@dataclass(frozen=True, slots=True)
class Repeats:
    """Layers of a list each of which is like the one a period before."""

    path: str
    """of the list"""
    start: int
    """first of the layers"""
    period: int
    """layers"""
    number: int
    """periods"""
    layers: int
    """of the whole list"""

    @property
    def spared(self) -> int:
        """Return how many layers fewer are run, as two short lists take the place of the whole one."""
        return (2 * (self.number - KEPT) - 1) * self.period - self.layers

    @contextmanager
    def shortened(self, model: nn.Module, periods: int = KEPT) -> Iterator[None]:
        """Leave so many periods in a model while the block runs."""
        owner, _, name = self.path.rpartition(".")
        parent = model.get_submodule(owner)
        whole: Any = getattr(parent, name)
        ends = self.start + periods * self.period, self.start + self.number * self.period
        setattr(parent, name, nn.ModuleList([*whole[: ends[0]], *whole[ends[1] :]]))
        try:
            yield
        finally:
            setattr(parent, name, whole)

    def trace(self, model: nn.Module, run: Callable[[], Trace]) -> Trace | None:
        """Return what `run` would return for the whole model; None if that does not follow from a few layers."""
        with self.shortened(model):
            few = run()
        with self.shortened(model, KEPT + 1):
            more = run()
        return few.grown(more, self.number - KEPT)


def find_repeats(model: nn.Module, paths: Iterable[str]) -> Repeats | None:
    """Return the repeats that spare most layers among the lists at some paths; None if none spare any.

    Only in classes of transformers, whose forward passes go through lists of layers from start to end.
    """
    if type(model).__module__.partition(".")[0] != "transformers":
        return None
    lists = [path for path in sorted(set(paths)) if path.rpartition(".")[2] not in BY_NUMBER]
    found = [each for path in lists for each in _repeats(path, model.get_submodule(path)) if each.spared > 0]
    return max(found, key=lambda each: each.spared, default=None)


def _repeats(path: str, layers: nn.Module) -> Iterator[Repeats]:
    """Yield the repeats of a list, for every period."""
    if not isinstance(layers, nn.ModuleList):
        return
    shapes = [_shape(layer) for layer in layers]
    for period in range(1, LONGEST + 1):
        place = 0
        for alike, run in groupby(one == other for one, other in zip(shapes, shapes[period:], strict=False)):
            length = len(list(run))
            if alike:
                yield Repeats(path, place, period, 1 + length // period, len(layers))
            place += length


def _shape(layer: nn.Module) -> list[Any]:
    """Return what layers that compute alike have in common."""
    return [
        (
            name,
            type(module),
            {key: value for key, value in vars(module).items() if isinstance(value, PLAIN) and key not in PLACES},
            [
                (own, tensor.shape, tensor.dtype, tensor.requires_grad)
                for own, tensor in chain(module.named_parameters(recurse=False), module.named_buffers(recurse=False))
            ],
        )
        for name, module in layer.named_modules()
    ]


def _grown(
    short: Int[np.ndarray, "few kinds"], longer: Int[np.ndarray, "more kinds"], times: int
) -> Int[np.ndarray, "operations kinds"] | None:
    """Return the first and last operations of a pass with `times` periods more than `short` has."""
    changes, others = np.diff(short, axis=0), np.diff(longer, axis=0)
    head, tail = _alike(changes, others), _alike(changes[::-1], others[::-1])
    if head + tail < len(others):
        return None
    last = len(short) - 1
    return np.concatenate(
        [short[: head + 1] + times * (longer[0] - short[0]), short[last - tail :] + times * (longer[-1] - short[-1])]
    )


def _alike(one: Int[np.ndarray, "few kinds"], other: Int[np.ndarray, "more kinds"]) -> int:
    """Return how many first rows are the same."""
    length = min(len(one), len(other))
    differs = (one[:length] != other[:length]).any(1)
    return int(differs.argmax()) if differs.any() else length
