"""Least-squares reconstruction: when units are removed, the projections that read them are fitted to the former outputs.

Some training rows pass through the unpruned model, and each projection that reads units gets the weights that best reproduce its output
from the remaining units. One matrix of second moments exists at a time, and the changes of most layers wait in a file. Errors of the
layers below are left to training.
Knows nothing about scores.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from loraprune.errors import ConfigError
from loraprune.groups import Group, Span, Stream, consumers, kept_entries
from loraprune.models.adapters import Projection, factors_kept, find_module, projection
from loraprune.models.streaming import at_hand
from loraprune.pruning.recovery.least_squares import Fit, refit
from loraprune.pruning.recovery.rows import Rows, on_device, present_tokens, run
from loraprune.pruning.recovery.stream import TokenStream
from loraprune.pruning.recovery.trace import CHANGING, SHARED
from loraprune.runtime.progress import Advance, phase
from loraprune.runtime.spool import Spool


def check_compensation(groups: Sequence[Group]) -> None:
    """Refuse projections without a least-squares reconstruction.

    Raises:
        ConfigError: for channels of convolutions.
    """
    if any(group.kind == "channel" for group in groups):
        raise ConfigError(
            "--compensate: only projections of text and image tokens can be reconstructed, not convolutions; leave it out"
        )


@dataclass(frozen=True, slots=True)
class Gain:
    """Result of a recovery step for one projection or block, on rows that were kept aside."""

    before: float
    """squared error, relative to the output before the removal"""
    after: float
    """the same afterwards; `before` where the step did not help and was undone"""

    @property
    def kept(self) -> bool:
        """Return whether the step helped."""
        return self.after < self.before


@dataclass(frozen=True, slots=True)
class Refit:
    """Change of one projection that reads units by least squares."""

    path: str
    changes: Mapping[str, Float[Tensor, "out kept"]]
    """path -> change, of all projections; each is read when it is asked for"""
    shift: Float[Tensor, " out"] | None
    """added to the bias, where there is one"""
    gain: Gain

    @property
    def change(self) -> Float[Tensor, "out kept"]:
        """Return what is added to the columns that stay."""
        return self.changes[self.path]


def solve_refits(
    model: nn.Module, groups: Sequence[Group], kept: Mapping[str, Sequence[int]], rows: Rows
) -> dict[str, Refit]:
    """Return the changes of projections that read units with which the units in `kept` replace the others.

    Call it before the cut, and `apply_refits_` after it. Inputs and targets are those of the unpruned model: fitted on the
    pruned model's own activations instead, weights shrink from layer to layer, as always with least squares and inputs
    that hold errors (docs/log.md has the figures). A change that does not lower the error on rows kept aside is dropped.
    Where whole layers go, the last projection before them is fitted to what they add to the residual stream too.
    Source: least squares on calibration activations, as in SlimGPT (arXiv 2412.18110) and OSSCAR (arXiv 2403.12983); the weights of
    tokens and the choice of the ridge are ours.

    Returns:
        Path of every projection that loses columns, or is before a layer that goes -> its change.
    """
    rows = on_device(model, rows)
    reading = [(group, span) for group in groups for span in consumers(group)]
    absorbing = _absorbing(reading, kept)
    with phase("refitting", len(reading)) as advance:
        solver = _Solver(model, kept, rows, advance)
        run(model, rows, [solver.watch(*each, absorbs=each[1].module in absorbing) for each in reading])
        solver.settle()
    return solver.found


@torch.no_grad()
def apply_refits_(
    model: nn.Module, groups: Sequence[Group], kept: Mapping[str, Sequence[int]], refits: Mapping[str, Refit]
) -> None:
    """Apply the changes to the frozen weights of projections; `kept` holds indices into the present units of `groups`."""
    for group in groups:
        for span in consumers(group):
            if span.module not in refits:
                continue
            refit_one, proj = refits[span.module], projection(model, span.module)
            module, columns = find_module(model, span.module), _stays(proj, group, span, kept[group.name])
            with at_hand(module, write=True):
                with factors_kept(module):
                    proj.add_columns_(columns, refit_one.change.to(proj.lora_a.device))
                if refit_one.shift is not None:
                    bias = proj.layer.bias
                    assert isinstance(bias, Tensor)
                    bias += refit_one.shift.to(bias)


def _absorbing(reading: Sequence[tuple[Group, Span]], kept: Mapping[str, Sequence[int]]) -> set[str]:
    """Return the paths of the projections right before a layer that goes; `reading` are all that read units, in the order they run."""
    pairs = ((span.module, kept[group.name], other) for (group, span), (other, _) in pairwise(reading))
    return {path for path, stay, other in pairs if stay and other.units and not kept[other.name]}


def _stays(proj: Projection, group: Group, span: Span, kept: Sequence[int]) -> Bool[Tensor, " in_"]:
    """Return which columns of a projection stay."""
    size = proj.shape[1]
    stays = torch.zeros(size, dtype=torch.bool, device=proj.lora_a.device)
    stays[torch.from_numpy(kept_entries(size, [span], group.units, kept))] = True
    return stays


class _Solver:
    """Solves the least-squares problems of projections, one after the other, while rows pass through the unpruned model."""

    def __init__(self, model: nn.Module, kept: Mapping[str, Sequence[int]], rows: Rows, advance: Advance) -> None:
        self.model, self.kept, self.rows, self.advance = model, kept, rows, advance
        self.found: dict[str, Refit] = {}
        """path of a projection -> its change"""
        self._streams: dict[Stream, TokenStream] = {}
        self._spool = Spool()
        self._open: _Problem | None = None
        """the problem of a projection right before a layer that goes"""

    def watch(self, group: Group, span: Span, *, absorbs: bool) -> Any:
        """Solve the problem of a projection that reads units as soon as it has run, or, if it `absorbs` layers that go, once they have."""
        proj = projection(self.model, span.module)
        stays = _stays(proj, group, span, self.kept[group.name])
        is_done = False

        def after(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            nonlocal is_done
            if is_done:
                raise ConfigError(SHARED.format(proj.path))
            is_done = True
            present = present_tokens(self.rows)[group.stream]
            former = output.flatten(0, -2)[present].to(proj.lora_a.dtype)
            stream = self._stream(group.stream, len(former))
            if isinstance(stream.total, Tensor) and stream.total.shape != former.shape:
                raise ConfigError(CHANGING.format(proj.path))
            if not self.kept[group.name]:
                if self._open:
                    self._open.goal = self._open.goal + former
            else:
                self.settle()
                if absorbs or not stays.all():
                    z = args[0].flatten(0, -2)[present]
                    self._open = _Problem(proj, stays, z, former, copy.copy(stream), residual=group.residual)
                if not absorbs:
                    self.settle()
            if group.residual:
                stream.pass_on(former, former)
            self.advance(1)

        return find_module(self.model, span.module).register_forward_hook(after)

    def settle(self) -> None:
        """Solve the problem that is open."""
        if self._open:
            self.found[self._open.proj.path] = self._open.solve(self._spool)
            self._open = None

    def _stream(self, name: Stream, tokens: int) -> TokenStream:
        if name not in self._streams:
            count = len(next(iter(self.rows.values())))
            self._streams[name] = TokenStream.of(present_tokens(self.rows)[name], count, tokens)
        return self._streams[name]


@dataclass(slots=True)
class _Problem:
    """The least-squares problem of a projection."""

    proj: Projection
    stays: Bool[Tensor, " in_"]
    z: Float[Tensor, "tokens in_"]
    """its inputs"""
    goal: Float[Tensor, "tokens out"]
    """what it gives for them in the unpruned model, and what layers right behind it give that go"""
    stream: TokenStream
    """the residual stream before the projection"""
    residual: bool

    def solve(self, spool: Spool) -> Refit:
        """Return the change of the columns that stay, set aside in a spool; errors count relative to the goal."""
        weight, bias = self.proj.merged_rows(0, self.proj.shape[0]), getattr(self.proj.layer, "bias", None)
        fit = Fit(
            self.z[:, self.stays].to(weight.dtype), weight[:, self.stays], self.goal - (0 if bias is None else bias),
            self.stream.weights(self.goal, residual=self.residual), self.stream.aside.to(self.z.device),
        )  # fmt: skip
        change, shift, error, left = refit(fit, with_bias=bias is not None, path=self.proj.path)
        held_out = fit.evaluating
        energy = (fit.weights[held_out] * self.goal[held_out].square()).sum()
        size = energy.clamp_min(torch.finfo(fit.weight.dtype).tiny)
        spool.add(self.proj.path, change)
        return Refit(
            self.proj.path,
            spool,
            shift.cpu() if bias is not None else None,
            Gain(float(error / size), float(left / size)),
        )
