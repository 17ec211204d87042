"""Least-squares reconstruction: when units are removed, the projections that read them are fitted to the former outputs.

Some training rows pass through the unpruned model, and each projection that reads units gets the weights that best reproduce its output
from the remaining units. One matrix of second moments exists at a time. Errors of the layers below are left to training.
Knows nothing about scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from loraprune.errors import ConfigError
from loraprune.groups import Group, Span, Stream, consumers, kept_entries
from loraprune.models.adapters import Projection, factors_kept, find_module, projection
from loraprune.pruning.recovery.least_squares import Fit, refit
from loraprune.pruning.recovery.rows import Rows, on_device, present_tokens, run
from loraprune.pruning.recovery.stream import TokenStream
from loraprune.pruning.recovery.trace import CHANGING, SHARED
from loraprune.runtime.progress import Advance, phase


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

    change: Float[Tensor, "out kept"]
    """added to the columns that stay"""
    shift: Float[Tensor, " out"] | None
    """added to the bias, where there is one"""
    gain: Gain


def solve_refits(
    model: nn.Module, groups: Sequence[Group], kept: Mapping[str, Sequence[int]], rows: Rows
) -> dict[str, Refit]:
    """Return the changes of projections that read units with which the units in `kept` replace the others.

    Call it before the cut, and `apply_refits_` after it. Inputs and targets are those of the unpruned model: fitted on the
    pruned model's own activations instead, weights shrink from layer to layer, as always with least squares and inputs
    that hold errors (docs/log.md has the figures). A change that does not lower the error on rows kept aside is dropped.
    Source: least squares on calibration activations, as in SlimGPT (arXiv 2412.18110) and OSSCAR (arXiv 2403.12983); the weights of
    tokens and the choice of the ridge are ours.

    Returns:
        Path of every projection that loses columns -> its change.
    """
    rows = on_device(model, rows)
    reading = [(group, span) for group in groups for span in consumers(group)]
    with phase("refitting", len(reading)) as advance:
        solver = _Solver(model, kept, rows, advance)
        run(model, rows, [solver.watch(group, span) for group, span in reading])
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
            with factors_kept(find_module(model, span.module)):
                proj.add_columns_(_stays(proj, group, span, kept[group.name]), refit_one.change.to(proj.lora_a.device))
            if refit_one.shift is not None:
                bias = proj.layer.bias
                assert isinstance(bias, Tensor)
                bias += refit_one.shift.to(bias)


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
        """path of a projection that loses columns -> its change"""
        self._streams: dict[Stream, TokenStream] = {}

    def watch(self, group: Group, span: Span) -> Any:
        """Solve the least-squares problem of a projection that reads units as soon as it has run."""
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
            if not stays.all():
                fit = _problem(proj, stays, args[0].flatten(0, -2)[present], former, stream, residual=group.residual)
                self.found[proj.path] = _refit(proj, fit, former)
            if group.residual:
                stream.pass_on(former, former)
            self.advance(1)

        return find_module(self.model, span.module).register_forward_hook(after)

    def _stream(self, name: Stream, tokens: int) -> TokenStream:
        if name not in self._streams:
            count = len(next(iter(self.rows.values())))
            self._streams[name] = TokenStream.of(present_tokens(self.rows)[name], count, tokens)
        return self._streams[name]


def _problem(
    proj: Projection, stays: Bool[Tensor, " in_"], z: Tensor, former: Tensor, stream: TokenStream, *, residual: bool
) -> Fit:
    """Return the target of the remaining columns: `former`, the projection's output for its inputs `z`."""
    weight, bias = proj.merged_rows(0, proj.shape[0]), getattr(proj.layer, "bias", None)
    return Fit(
        z[:, stays].to(weight.dtype), weight[:, stays], former - (0 if bias is None else bias),
        stream.weights(former, residual=residual), stream.aside.to(z.device),
    )  # fmt: skip


def _refit(proj: Projection, fit: Fit, former: Tensor) -> Refit:
    """Solve a problem; errors count relative to what the projection gave."""
    with_bias = getattr(proj.layer, "bias", None) is not None
    change, shift, error, left = refit(fit, with_bias=with_bias, path=proj.path)
    held_out = fit.evaluating
    energy = (fit.weights[held_out] * former[held_out].square()).sum()
    size = energy.clamp_min(torch.finfo(fit.weight.dtype).tiny)
    gain = Gain(float(error / size), float(left / size))
    return Refit(change.cpu(), shift.cpu() if with_bias else None, gain)
