"""Closed-form recovery: when units go, the projections that read them are refitted to what the model gave before.

The model's answers to some training rows are written down, then the same rows go through it without the units, layer after
layer: each reading projection gets the weights that bring the residual stream nearest to what it was, on what the already
refitted layers below really send it, so that errors are mended instead of added up. One matrix of second moments exists at a
time. Knows nothing about scores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from loraprune.errors import ConfigError, NumericsError
from loraprune.groups import Group, Span, Stream, consumers, kept_entries
from loraprune.models.adapters import backbone, find_module, no_cache, projection
from loraprune.models.modes import dropout_off
from loraprune.pruning.recovery.spool import Spool

ROWS_AT_A_TIME = 8
"""rows that a trace is taken of in one pass"""
DAMPING = 0.1
"""ridge added to the second moments, as a fraction of their mean diagonal; docs/log.md compares values"""


Rows = Mapping[str, Tensor]
"""inputs of a model without labels; where there is a mask (rows, seq) of a stream's tokens, padding does not count"""

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
        for start in range(0, count, ROWS_AT_A_TIME):
            some = {name: values[start : start + ROWS_AT_A_TIME] for name, values in rows.items()}
            given = _outputs(model, streams, some)
            if spool is None:
                spool = Spool(sum(part.nbytes for part in given.values()) * math.ceil(count / ROWS_AT_A_TIME))
            for path, part in given.items():
                spool.add(path, part)
        self.outputs: dict[str, Float[Tensor, "tokens hidden"]] = spool.tensors() if spool else {}


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
            backbone(model)(**rows, **no_cache(model))  # without the head, whose logits would take the most memory
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


def compensate_(
    model: nn.Module, groups: Sequence[Group], kept: Mapping[str, Sequence[int]], trace: Trace, rows: Rows
) -> None:
    """Refit every projection that reads units to what it gave for `rows` when `trace` was taken, before some units went.

    `kept` holds indices into the units of `groups`: all of them once the others are cut. Modifies the frozen weights of `model`,
    not its adapters.
    Source: least squares on calibration activations, as in SlimGPT and OSSCAR (PAPER.md, section 3), layer after layer on the
    pruned model's own activations as in Frantar and Alistarh, SparseGPT (arXiv 2301.00774); that errors of the layers below
    are mended too is ours.
    """
    rows = on_device(model, rows)
    streams = {name: TokenStream(present) for name, present in trace.present.items()}
    handles = []
    for group in groups:
        for span in consumers(group):
            before = trace.outputs[span.module]
            refit_one = _Refit(model, group, span, kept[group.name], streams[group.stream], before)
            module = find_module(model, span.module)
            handles += [
                module.register_forward_pre_hook(refit_one.before),
                module.register_forward_hook(refit_one.after),
            ]
    run(model, rows, handles)


class TokenStream:
    """How far the residual stream of before is from the present one, so far down the layers."""

    def __init__(self, present: Tensor | slice) -> None:
        self.present = present
        self.missing: Tensor | float = 0.0

    def places(self, tokens: int, rows: int) -> Int[Tensor, "rows seq"]:
        """Return where each row's tokens stand among all that are present, -1 for padding."""
        if isinstance(self.present, slice):
            return torch.arange(tokens).view(rows, -1)
        counted = torch.where(self.present, self.present.cumsum(0) - 1, -1)
        return counted.view(rows, -1)


class _Refit:
    """Refits a projection to what it gave before, then hands on its input without the units that go."""

    def __init__(
        self, model: nn.Module, group: Group, span: Span, kept: Sequence[int], state: TokenStream, before: Tensor
    ) -> None:
        self.projection, self.group, self.state, self.former = projection(model, span.module), group, state, before
        size = self.projection.shape[1]
        self.stays = torch.zeros(size, dtype=torch.bool, device=self.projection.lora_a.device)
        self.stays[torch.from_numpy(kept_entries(size, [span], group.units, kept))] = True

    def _goal(self, like: Tensor) -> Tensor:
        former = self.former.to(like)
        return former + self.state.missing if self.group.residual else former

    def before(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        weight = self.projection.merged_rows(0, self.projection.shape[0])
        z = args[0].flatten(0, -2)[self.state.present].to(weight.dtype)
        bias = getattr(self.projection.layer, "bias", None)
        goal = self._goal(z) - (0 if bias is None else bias)
        change, shift = refit(z, weight, self.stays, goal, with_bias=bias is not None, path=self.projection.path)
        self.projection.add_columns_(self.stays, change)
        if bias is not None:
            bias += shift.to(bias.dtype)
        return (args[0] * self.stays.to(args[0].dtype), *args[1:])

    def after(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        if self.group.residual:
            mine = output.flatten(0, -2)[self.state.present].to(self.projection.lora_a.dtype)
            self.state.missing = self._goal(mine) - mine


def refit(
    z: Float[Tensor, "tokens in_"],
    weight: Float[Tensor, "out in_"],
    stays: Bool[Tensor, " in_"],
    goal: Float[Tensor, "tokens out"],
    *,
    with_bias: bool,
    path: str,
) -> tuple[Float[Tensor, "out kept"], Float[Tensor, " out"]]:
    """Return the changes D, d of kept columns and bias that minimise |z_K (W_K + D)^T + d - goal|^2 + ridge (|D|^2 + |d|^2).

    Without a bias d is zero. The solution is E^T z_K (z_K^T z_K + ridge I)^-1 with E = goal - z_K W_K^T.

    Raises:
        NumericsError: if an activation is NaN or infinite.
    """
    seen = z[:, stays]
    error = goal - seen @ weight[:, stays].T
    if with_bias:
        seen = torch.cat((seen, seen.new_ones(len(seen), 1)), dim=1)
    moments = seen.T @ seen
    if not torch.isfinite(moments).all() or not torch.isfinite(error).all():
        raise NumericsError(f"{path!r}: an activation is NaN or infinite: lower --lr, or use --dtype float32")
    moments.diagonal().add_(DAMPING * moments.diagonal().mean().clamp_min(torch.finfo(z.dtype).tiny))
    change = torch.cholesky_solve(seen.T @ error, torch.linalg.cholesky(moments)).T
    return (change[:, :-1], change[:, -1]) if with_bias else (change, change.new_zeros(len(change)))
