"""Least-squares reconstruction: when units are removed, the projections that read them are fitted to the former outputs.

Some training rows pass through the unpruned model, and each projection that reads units gets the weights that best reproduce its output
from the remaining units. One matrix of second moments exists at a time. Errors of the layers below are left to training.
Knows nothing about scores.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from loraprune.errors import ConfigError, NumericsError
from loraprune.groups import Group, Span, Stream, consumers, kept_entries
from loraprune.models.adapters import Projection, backbone, find_module, no_cache, projection
from loraprune.models.modes import dropout_off
from loraprune.pruning.recovery.spool import Spool
from loraprune.runtime.progress import Advance, phase, shown

ROWS_AT_A_TIME = 8
"""rows that are traced in one pass"""
RIDGES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003)
"""candidates of the ridge, as multiples of the second moments' diagonal; rows kept aside choose"""
SHARED = "--compensate, --local: {!r} is used by several layers, which would need separate weights: leave them out"
CHANGING = (
    "--compensate, --local: the residual stream of this model changes its shape at {!r}, so that its tokens cannot be followed: leave "
    "them out"
)
ASIDE = 8
"""one calibration row in so many is kept aside"""


Rows: TypeAlias = Mapping[str, Shaped[Tensor, "rows ..."]]
"""inputs of a model, with labels or without; where there is a mask (rows, seq) of a stream's tokens, padding does not count"""

LABELS = "labels"
"""inputs with the targets, which the layers below the head do not take"""
MASKS: Mapping[Stream, str] = {"input": "attention_mask", "decoder": "decoder_attention_mask"}
"""stream -> the input that marks its positions with a token"""


def present_tokens(rows: Rows) -> dict[Stream, Bool[Tensor, " places"] | slice]:
    """Return which positions of every residual stream hold a token."""
    return {stream: rows[name].flatten().bool() if name in rows else slice(None) for stream, name in MASKS.items()}


def on_device(model: nn.Module, rows: Rows) -> dict[str, Shaped[Tensor, "rows ..."]]:
    """Return rows on the model's device."""
    device = next(model.parameters()).device
    return {name: values.to(device) for name, values in rows.items()}


class Trace:
    """Outputs of every reading projection for some rows: as large as a model's activations, so in files if that is much."""

    def __init__(self, model: nn.Module, groups: Sequence[Group], rows: Rows) -> None:
        rows = on_device(model, rows)
        self.present = present_tokens(rows)
        streams = {span.module: group.stream for group in groups for span in consumers(group)}
        count, spool = len(next(iter(rows.values()))), None
        starts = range(0, count, ROWS_AT_A_TIME)
        for start in shown(starts, "reading the dense model's outputs"):
            some = {name: values[start : start + ROWS_AT_A_TIME] for name, values in rows.items()}
            given = _outputs(model, streams, some)
            if spool is None:
                spool = Spool(sum(part.nbytes for part in given.values()) * math.ceil(count / ROWS_AT_A_TIME))
            for path, part in given.items():
                spool.add(path, part)
        self.outputs: dict[str, Float[Tensor, "tokens hidden"]] = spool.tensors() if spool else {}
        shapes: dict[Stream, torch.Size] = {}
        for path, outputs in self.outputs.items():
            if shapes.setdefault(streams[path], outputs.shape) != outputs.shape:
                raise ConfigError(CHANGING.format(path))
        self.tokens: dict[Stream, int] = {streams[path]: len(given) for path, given in self.outputs.items()}


def _outputs(model: nn.Module, streams: Mapping[str, Stream], rows: Rows) -> dict[str, Float[Tensor, "tokens hidden"]]:
    """Return the output of each projection for the tokens of its stream."""
    present = present_tokens(rows)
    given: dict[str, list[Tensor]] = {path: [] for path in streams}

    def keeper(path: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda _, __, output: given[path].append(output.flatten(0, -2)[present[streams[path]]].cpu())

    run(model, rows, [find_module(model, path).register_forward_hook(keeper(path)) for path in streams])
    if shared := [path for path, parts in given.items() if len(parts) > 1]:
        raise ConfigError(SHARED.format(shared[0]))
    return {path: parts[0] for path, parts in given.items()}


def run(model: nn.Module, rows: Rows, handles: Sequence[Any]) -> None:
    """Run rows through a model without dropout, and remove the hooks that traced it."""
    try:
        with dropout_off(model), torch.no_grad():
            inputs = {name: values for name, values in rows.items() if name != LABELS}
            backbone(model)(**inputs, **no_cache(model))  # without the head, whose logits would take the most memory
    finally:
        for handle in handles:
            handle.remove()


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


class TokenStream:
    """The residual stream up to some layer: its difference from the one before the removal, and its size."""

    def __init__(self, present: Bool[Tensor, " places"] | slice, rows: int, places: int) -> None:
        """Take which of the rows * positions hold a token."""
        self.present = present
        self.missing: Tensor | float = 0.0
        self.total: Tensor | float = 0.0
        """(tokens, hidden) what the layers so far had added to the stream before the removal"""
        every = torch.arange(rows * places)
        self._counted = (
            torch.where(present.cpu(), present.cpu().cumsum(0) - 1, -1) if isinstance(present, Tensor) else every
        )
        row_of_token = (every // places)[present.cpu() if isinstance(present, Tensor) else present]
        self.aside: Bool[Tensor, " tokens"] = rows_aside(rows)[row_of_token]
        """tokens kept aside: nothing is fitted to them, and fits are evaluated on them"""
        self._shape = rows, places

    @classmethod
    def of(cls, present: Bool[Tensor, " places"] | slice, rows: int, tokens: int) -> TokenStream:
        """Return the stream of so many rows and tokens at the bottom of a model."""
        return cls(present, rows, (len(present) if isinstance(present, Tensor) else tokens) // rows)

    def places(self) -> Int[Tensor, "rows seq"]:
        """Return the index of each row's tokens among all present ones, -1 for padding."""
        return self._counted.view(self._shape)

    def at(self, tokens: Int[Tensor, " some"]) -> TokenStream:
        """Return the stream at some tokens, to be passed on by itself."""
        found = copy.copy(self)
        found.missing, found.total = (
            each[tokens] if isinstance(each, Tensor) else each for each in (self.missing, self.total)
        )
        return found

    def pass_on(self, former: Float[Tensor, "tokens hidden"], mine: Float[Tensor, "tokens hidden"]) -> None:
        """Note what a projection added to the stream before the removal, and what it adds now."""
        self.missing = former + self.missing - mine
        self.total = former + self.total

    def weights(self, former: Float[Tensor, "tokens hidden"], *, residual: bool) -> Float[Tensor, "tokens 1"]:
        """Return the weight of an error at each token."""
        return token_weights(former + self.total if residual else former)


def token_weights(stream: Float[Tensor, "tokens hidden"]) -> Float[Tensor, "tokens 1"]:
    """Return the weight of an error at each token: it falls with the size of the stream that it is added to. Their mean is 1.

    Large models have massive activations: of SmolLM2's stream one token in a hundred holds up to 98 % of the energy, and plain least
    squares fits little else. The norm that reads the stream divides by its size, and so do the weights.
    """
    energy = stream.square().mean(1, keepdim=True)
    weights = 1 / (energy + energy.median()).clamp_min(torch.finfo(energy.dtype).tiny)
    return weights / weights.mean()


def token_streams(trace: Trace, rows: Rows) -> dict[Stream, TokenStream]:
    """Return every residual stream at the bottom of a model, for rows that a trace was taken of."""
    count = len(next(iter(rows.values())))
    return {name: TokenStream.of(trace.present[name], count, tokens) for name, tokens in trace.tokens.items()}


def rows_aside(count: int) -> Bool[Tensor, " rows"]:
    """Return which rows are kept aside for evaluation: one in `ASIDE`, at least one; a single row is used for both."""
    aside = torch.zeros(count, dtype=torch.bool)
    aside[ASIDE - 1 :: ASIDE] = True
    aside[-1] |= not aside.any()
    return aside


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
    size = (fit.weights[fit.judging] * former[fit.judging].square()).sum().clamp_min(torch.finfo(fit.weight.dtype).tiny)
    gain = Gain(float(error / size), float(left / size))
    return Refit(change.cpu(), shift.cpu() if with_bias else None, gain)


@dataclass(frozen=True, slots=True)
class Fit:
    """A weighted least-squares problem: bring z W^T near to a goal."""

    z: Float[Tensor, "tokens kept"]
    weight: Float[Tensor, "out kept"]
    goal: Float[Tensor, "tokens out"]
    weights: Float[Tensor, "tokens 1"]
    """weight of each token"""
    aside: Bool[Tensor, " tokens"]
    """tokens for evaluation; the others are for the fit. If all or none are aside, all are used for both"""

    @property
    def learning(self) -> Bool[Tensor, " tokens"]:
        """Return which tokens are for the fit."""
        return ~self.aside if not self.aside.all() else self.aside

    @property
    def judging(self) -> Bool[Tensor, " tokens"]:
        """Return which tokens are for evaluation."""
        return self.aside if self.aside.any() else ~self.aside


def refit(
    fit: Fit, *, with_bias: bool, path: str
) -> tuple[Float[Tensor, "out kept"], Float[Tensor, " out"], Float[Tensor, ""], Float[Tensor, ""]]:
    """Return the changes D, d of weight and bias that minimise the weighted |z (W + D)^T + d - goal|^2 + |[D d] R|^2.

    R^2 is diagonal, a multiple of the diagonal of the second moments, so that it is alike for channels of any size. Which multiple is
    decided by the tokens that are aside: from the largest of `RIDGES` down, as long as their error falls. Where none lowers it, D is 0.
    Without a bias d is zero.

    Returns:
        D, d, and the weighted squared error of the tokens aside before and after.

    Raises:
        NumericsError: if an activation is NaN or infinite.
    """
    z = torch.cat((fit.z, fit.z.new_ones(len(fit.z), 1)), dim=1) if with_bias else fit.z
    weight = torch.cat((fit.weight, fit.weight.new_zeros(len(fit.weight), 1)), dim=1) if with_bias else fit.weight
    learned = fit.learning
    weighted = z[learned] * fit.weights[learned]
    moments = weighted.T @ z[learned]
    cross = weighted.T @ fit.goal[learned] - moments @ weight.T  # of the error that is left, which is never formed
    if not torch.isfinite(moments).all() or not torch.isfinite(cross).all():
        raise NumericsError(f"{path!r}: an activation is NaN or infinite: lower --lr, or use --dtype float32")
    judged = z[fit.judging], fit.goal[fit.judging], fit.weights[fit.judging]
    change = torch.zeros_like(weight)
    before = left = _error(weight, *judged)
    diagonal = moments.diagonal().clone()
    floor = diagonal.mean().clamp_min(torch.finfo(z.dtype).tiny) * torch.finfo(z.dtype).eps * len(diagonal)
    for ridge in RIDGES:
        damped = moments.clone()
        damped.diagonal().add_(ridge * diagonal + floor)
        factor, failed = torch.linalg.cholesky_ex(damped)
        if failed:
            break
        candidate = torch.cholesky_solve(cross, factor).T
        error = _error(weight + candidate, *judged)
        if not error < left:
            break
        change, left = candidate, error
    return (
        (change[:, :-1], change[:, -1], before, left)
        if with_bias
        else (change, change.new_zeros(len(change)), before, left)
    )


def _error(weight: Tensor, z: Tensor, goal: Tensor, weights: Tensor) -> Float[Tensor, ""]:
    """Return the weighted squared error of z W^T."""
    return (weights * (goal - z @ weight.T).square()).sum()
