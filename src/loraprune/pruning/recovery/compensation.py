"""Closed-form recovery: when units go, the projections that read them are refitted to what the model gave before.

The model's answers to some training rows are written down, then the same rows go through it without the units, layer after
layer: each reading projection gets the weights that bring the residual stream nearest to what it was, on what the already
refitted layers below really send it, so that errors are mended instead of added up. One matrix of second moments exists at a
time. Knows nothing about scores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from loraprune.errors import ConfigError, NumericsError
from loraprune.groups import Group, Span, Stream, consumers, kept_entries
from loraprune.models.adapters import backbone, find_module, no_cache, projection
from loraprune.models.modes import dropout_off
from loraprune.pruning.recovery.spool import Spool
from loraprune.runtime.progress import phase, shown

ROWS_AT_A_TIME = 8
"""rows that a trace is taken of in one pass"""
RIDGES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003)
"""multiples of the second moments' diagonal that may be added to it; rows kept aside choose"""
ASIDE = 8
"""one calibration row in so many is kept aside"""


Rows = Mapping[str, Tensor]
"""inputs of a model, with labels or without; where there is a mask (rows, seq) of a stream's tokens, padding does not count"""

LABELS = "labels"
"""what the model is to predict, which the layers below its head do not take"""
MASKS: Mapping[Stream, str] = {"input": "attention_mask", "decoder": "decoder_attention_mask"}
"""stream -> the input that says which of its places hold a token"""


def present_tokens(rows: Rows) -> dict[Stream, Tensor | slice]:
    """Return which places of every residual stream hold a token: (places,), or all of them."""
    return {stream: rows[name].flatten().bool() if name in rows else slice(None) for stream, name in MASKS.items()}


def on_device(model: nn.Module, rows: Rows) -> Rows:
    """Return rows where the model is."""
    return {name: values.to(next(model.parameters()).device) for name, values in rows.items()}


class Trace:
    """What every reading projection gives for some rows: as large as a model's activations, so in files where that is much."""

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
        self.tokens: dict[Stream, int] = {streams[path]: len(given) for path, given in self.outputs.items()}


def _outputs(model: nn.Module, streams: Mapping[str, Stream], rows: Rows) -> dict[str, Float[Tensor, "tokens hidden"]]:
    """Return what each projection gives for the tokens of its stream."""
    present = present_tokens(rows)
    given: dict[str, list[Tensor]] = {path: [] for path in streams}

    def keeper(path: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda _, __, output: given[path].append(output.flatten(0, -2)[present[streams[path]]].cpu())

    run(model, rows, [find_module(model, path).register_forward_hook(keeper(path)) for path in streams])
    if shared := [path for path, parts in given.items() if len(parts) > 1]:
        raise ConfigError(
            f"--compensate, --local: {shared[0]!r} is used by several layers, each of which would need weights of its own: "
            "leave them out"
        )
    return {path: parts[0] for path, parts in given.items()}


def run(model: nn.Module, rows: Rows, handles: Sequence[Any]) -> None:
    """Let rows through a model without dropout, and take the hooks off that watched it."""
    try:
        with dropout_off(model), torch.no_grad():
            inputs = {name: values for name, values in rows.items() if name != LABELS}
            backbone(model)(**inputs, **no_cache(model))  # without the head, whose logits would take the most memory
    finally:
        for handle in handles:
            handle.remove()


def check_compensation(groups: Sequence[Group]) -> None:
    """Refuse what cannot be refitted.

    Raises:
        ConfigError: for channels of convolutions.
    """
    if any(group.kind == "channel" for group in groups):
        raise ConfigError(
            "--compensate: projections of text and image tokens are refitted, not convolutions; leave it out"
        )


@dataclass(frozen=True, slots=True)
class Gain:
    """What a step of recovery did to one projection or block, on rows that it did not learn from."""

    before: float
    """squared error, relative to what was there before the removal"""
    after: float
    """the same afterwards; `before` where the step did not help and was undone"""

    @property
    def kept(self) -> bool:
        """Say whether the step helped."""
        return self.after < self.before


def compensate_(
    model: nn.Module, groups: Sequence[Group], kept: Mapping[str, Sequence[int]], trace: Trace, rows: Rows
) -> dict[str, Gain]:
    """Refit every projection that reads units to what it gave for `rows` when `trace` was taken, before some units went.

    `kept` holds indices into the units of `groups`: all of them once the others are cut. Modifies the frozen weights of `model`,
    not its adapters. A refit that does not lower the error on rows kept aside is left out.
    Source: least squares on calibration activations, as in SlimGPT and OSSCAR (PAPER.md, section 3), layer after layer on the
    pruned model's own activations as in Frantar and Alistarh, SparseGPT (arXiv 2301.00774); that errors of the layers below
    are mended too, and that tokens and ridge are weighted as below, is ours.

    Returns:
        Path of every projection -> what its refit gained.
    """
    rows = on_device(model, rows)
    streams = token_streams(trace, rows)
    gains: dict[str, Gain] = {}
    handles = []
    for group in groups:
        for span in consumers(group):
            before = trace.outputs[span.module]
            refit_one = _Refit(model, group, span, kept[group.name], streams[group.stream], before, gains)
            module = find_module(model, span.module)
            handles += [
                module.register_forward_pre_hook(refit_one.before),
                module.register_forward_hook(refit_one.after),
            ]
    with phase("refitting", len(handles) // 2) as advance:
        handles += [find_module(model, path).register_forward_hook(lambda *_: advance(1)) for path in trace.outputs]
        run(model, rows, handles)
    return gains


class TokenStream:
    """The residual stream, so far down the layers: how far the one of before is from the present one, and how large it was."""

    def __init__(self, present: Tensor | slice, rows: int, places: int) -> None:
        """Take which of the rows * places hold a token."""
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
        """the tokens that nothing is fitted to: what is fitted is judged by them"""
        self._shape = rows, places

    def places(self) -> Int[Tensor, "rows seq"]:
        """Return where each row's tokens stand among all that are present, -1 for padding."""
        return self._counted.view(self._shape)

    def pass_on(self, former: Float[Tensor, "tokens hidden"], mine: Float[Tensor, "tokens hidden"]) -> None:
        """Note what a projection added to the stream before the removal, and what it adds now."""
        self.missing = former + self.missing - mine
        self.total = former + self.total

    def weights(self, former: Float[Tensor, "tokens hidden"], *, residual: bool) -> Float[Tensor, "tokens 1"]:
        """Return how much an error counts at each token."""
        return token_weights(former + self.total if residual else former)


def token_weights(stream: Float[Tensor, "tokens hidden"]) -> Float[Tensor, "tokens 1"]:
    """Return how much an error counts at each token: the less, the larger the stream is that it is added to. Their mean is 1.

    Large models have massive activations: of SmolLM2's stream one token in a hundred holds up to 98 % of the energy, and plain least
    squares fits little else. The norm that reads the stream divides by its size, and so do the weights.
    """
    energy = stream.square().mean(1, keepdim=True)
    weights = 1 / (energy + energy.median()).clamp_min(torch.finfo(energy.dtype).tiny)
    return weights / weights.mean()


def token_streams(trace: Trace, rows: Rows) -> dict[Stream, TokenStream]:
    """Return every residual stream at the bottom of a model, for rows that a trace was taken of."""
    count, found = len(next(iter(rows.values()))), {}
    for name, tokens in trace.tokens.items():
        present = trace.present[name]
        places = len(present) if isinstance(present, Tensor) else tokens
        found[name] = TokenStream(present, count, places // count)
    return found


def rows_aside(count: int) -> Bool[Tensor, " rows"]:
    """Return which rows judge what the others teach: one in `ASIDE`, at least one; a single row does both."""
    aside = torch.zeros(count, dtype=torch.bool)
    aside[ASIDE - 1 :: ASIDE] = True
    aside[-1] |= not aside.any()
    return aside


class _Refit:
    """Refits a projection to what it gave before, then hands on its input without the units that go."""

    def __init__(
        self,
        model: nn.Module,
        group: Group,
        span: Span,
        kept: Sequence[int],
        state: TokenStream,
        before: Tensor,
        gains: dict[str, Gain],
    ) -> None:
        self.projection, self.group, self.state, self.former = projection(model, span.module), group, state, before
        self.gains = gains
        size = self.projection.shape[1]
        self.stays = torch.zeros(size, dtype=torch.bool, device=self.projection.lora_a.device)
        self.stays[torch.from_numpy(kept_entries(size, [span], group.units, kept))] = True

    def before(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        weight = self.projection.merged_rows(0, self.projection.shape[0])
        z = args[0].flatten(0, -2)[self.state.present].to(weight.dtype)
        bias = getattr(self.projection.layer, "bias", None)
        former = self.former.to(z)
        goal = (former + self.state.missing if self.group.residual else former) - (0 if bias is None else bias)
        fit = Fit(
            z[:, self.stays], weight[:, self.stays], goal,
            self.state.weights(former, residual=self.group.residual), self.state.aside.to(z.device),
        )  # fmt: skip
        change, shift, error, left = refit(fit, with_bias=bias is not None, path=self.projection.path)
        scale = (fit.weights[fit.judging] * former[fit.judging].square()).sum().clamp_min(torch.finfo(z.dtype).tiny)
        self.gains[self.projection.path] = Gain(float(error / scale), float(left / scale))
        self.projection.add_columns_(self.stays, change)
        if bias is not None:
            bias += shift.to(bias.dtype)
        return (args[0] * self.stays.to(args[0].dtype), *args[1:])

    def after(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        if self.group.residual:
            mine = output.flatten(0, -2)[self.state.present].to(self.projection.lora_a.dtype)
            self.state.pass_on(self.former.to(mine), mine)


@dataclass(frozen=True, slots=True)
class Fit:
    """A weighted least-squares problem: bring z W^T near to a goal."""

    z: Float[Tensor, "tokens kept"]
    weight: Float[Tensor, "out kept"]
    goal: Float[Tensor, "tokens out"]
    weights: Float[Tensor, "tokens 1"]
    """how much each token counts"""
    aside: Bool[Tensor, " tokens"]
    """tokens to judge by; the others are fitted to. Where all or none are aside, all do both"""

    @property
    def learning(self) -> Bool[Tensor, " tokens"]:
        """Return which tokens are fitted to."""
        return ~self.aside if not self.aside.all() else self.aside

    @property
    def judging(self) -> Bool[Tensor, " tokens"]:
        """Return which tokens say whether the fit helps."""
        return self.aside if self.aside.any() else ~self.aside


def refit(
    fit: Fit, *, with_bias: bool, path: str
) -> tuple[Float[Tensor, "out kept"], Float[Tensor, " out"], Tensor, Tensor]:
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
