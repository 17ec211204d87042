"""Collectives of the processes that train one model together; no-ops in a single process.

Gradients are left to accelerate. These collectives send decisions, errors and small sums, on the CPU by gloo whatever the
devices are. A process that dies closes its connections, so the others stop waiting with an error.
Knows nothing about models.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from jaxtyping import Shaped
from torch import Tensor

from loraprune.errors import LoraPruneError
from loraprune.runtime import launch

STEP = timedelta(minutes=30)
"""how long a step waits for another process: the Trainer's own default"""
ALONE = timedelta(hours=24)
"""how long others wait while the first process merges, saves and verifies; a process that died is noticed at once"""
Value = TypeVar("Value")


def count() -> int:
    """Return how many processes there are."""
    return launch.count()


def are_joined() -> bool:
    """Return whether gradients are summed over processes, even over a single one."""
    return dist.is_initialized()


@contextmanager
def joined(command: str, device: str) -> Iterator[None]:
    """Initialise the process group of a launch as accelerate does: nccl on GPUs, gloo on CPUs.

    Raises:
        ConfigError: for a launch that is not supported.
    """
    launch.check_launch(command)  # the command line has done so before torch was loaded; a caller from Python has not
    if not launch.is_launched() or dist.is_initialized():  # a round of several, or a caller who has joined them
        yield
        return
    PartialState(cpu=device == "cpu" or not torch.cuda.is_available(), timeout=STEP)
    dist.monitored_barrier(words(), timeout=STEP)
    yield
    # After an error the process ends instead: taking leave of others that wait for it might never end.
    words.cache_clear()
    dist.destroy_process_group()


@functools.cache
def words() -> dist.ProcessGroup:
    """Return the gloo group of all processes; all must create it at the same point."""
    group = dist.new_group(backend="gloo", timeout=ALONE)
    assert isinstance(group, dist.ProcessGroup)
    return group


@contextmanager
def together() -> Iterator[None]:
    """Run a block in every process; an error in one is raised in all of them. The block must not wait for other processes."""
    found: LoraPruneError | None = None
    try:
        yield
    except LoraPruneError as error:
        found = error
    for first_found in filter(None, gather(found)):
        raise first_found


def first_alone(function: Callable[[], Value]) -> Value:
    """Run a function in the first process; all processes return its result or raise its error."""
    if count() == 1:
        return function()
    outcome: list[Any] = [None, None]
    if launch.is_first():
        try:
            outcome[0] = function()
        except LoraPruneError as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome, src=0, group=words())
    if outcome[1] is not None:
        raise outcome[1]
    value: Value = outcome[0]
    return value


@contextmanager
def in_turn() -> Iterator[None]:
    """Run a block in the first process before the others: it writes what they read."""
    if not launch.is_first():
        first_alone(int)
    yield
    if launch.is_first():
        first_alone(int)


def from_first(value: Value) -> Value:
    """Return the first process's value."""
    return first_alone(lambda: value)


def gather(value: Value) -> list[Value]:
    """Return the value of every process, in order."""
    if count() == 1:
        return [value]
    found: list[Any] = [None] * count()
    dist.all_gather_object(found, value, group=words())
    return found


def most(value: int) -> int:
    """Return the largest value of all processes."""
    if count() == 1:
        return value
    found = torch.tensor(value)
    dist.all_reduce(found, dist.ReduceOp.MAX, group=words())
    return int(found)


def agreed(reason: str | None) -> str | None:
    """Return the reason of the first process that has one; None if none has."""
    if not most(int(reason is not None)):
        return None
    return next(filter(None, gather(reason)))


def add_up(sums: Mapping[str, Shaped[Tensor, "..."]]) -> dict[str, Shaped[Tensor, "..."]]:
    """Return sums over all processes, which have the same names and shapes: in float64, the same bits everywhere."""
    if count() == 1 or not sums:
        return dict(sums)
    names = sorted(sums)
    flat = torch.cat([sums[name].detach().double().cpu().flatten() for name in names])
    dist.all_reduce(flat, group=words())
    parts = flat.split([sums[name].numel() for name in names])
    return {name: part.view(sums[name].shape).to(sums[name]) for name, part in zip(names, parts, strict=True)}


def take_from_first_(tensors: Iterable[Shaped[Tensor, "..."]]) -> None:
    """Give tensors the values that they have in the first process; they stay on their devices."""
    if count() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, src=0)
