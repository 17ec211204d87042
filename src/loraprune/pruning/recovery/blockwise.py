"""Blockwise recovery: a block that lost units learns, on its own, to give what it gave before.

Gradient descent runs inside one block at a time, on what the blocks below really send it, towards what its reading projections gave
before the units went and what is still missing from the residual stream. No gradient passes a block, so a step costs a fraction of one of
training. Knows nothing about scores.
"""

from __future__ import annotations

import logging
import math
import posixpath
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from loraprune.errors import ConfigError, NumericsError
from loraprune.groups import Group, consumers, layer_of
from loraprune.models.adapters import base_layer, cuts, dense_for_a_while, find_module, linear_paths
from loraprune.pruning.recovery.compensation import Rows, TokenStream, Trace, on_device, run

RATE = 0.05
"""largest step of a weight, as a fraction of the RMS of its tensor; docs/log.md compares values"""
TOKENS = 256
"""tokens that a block sees in a step, in whole rows"""

logger = logging.getLogger(__name__)


def check_blocks(groups: Sequence[Group]) -> None:
    """Refuse what has no block of its own.

    Raises:
        ConfigError: for channels of convolutions.
    """
    for group in groups:
        if group.kind == "channel":
            raise ConfigError(f"--local: channels of {group.name!r} are no part of a single block; leave --local out")


def blocks_of(groups: Sequence[Group]) -> dict[str, list[Group]]:
    """Return the groups by the smallest module that holds all their projections; one module never holds another.

    Units that several layers share have no block and are left out.
    """
    own = [group for group in groups if layer_of(group)]
    paths = {group.name: _common([span.module for span in group.spans]) for group in own}
    found: dict[str, list[Group]] = {}
    for group in own:
        inside = paths[group.name]
        outermost = min((path for path in paths.values() if f"{inside}.".startswith(f"{path}.")), key=len)
        found.setdefault(outermost, []).append(group)
    return found


def _common(paths: Sequence[str]) -> str:
    """Return the innermost module that holds all of them."""
    holders = [path.rpartition(".")[0].replace(".", "/") for path in paths]
    return posixpath.commonpath(holders).replace("/", ".")


Scales = Mapping[str, float]
"""path of a projection -> root mean square of its weights"""


def weight_scales(model: nn.Module, groups: Sequence[Group]) -> Scales:
    """Return how large the frozen weights of every projection are; taken of the dense model, masked and cut ones learn alike."""
    scales = {}
    for path in linear_paths(groups):
        weight = next(cuts(base_layer(find_module(model, path)), "out")).values()
        scales[path] = weight.float().square().mean().sqrt().item()
    return scales


def fit_blocks_(
    model: nn.Module,
    groups: Sequence[Group],
    changed: Collection[str],
    trace: Trace,
    rows: Rows,
    scales: Scales,
    *,
    steps: int,
    seed: int,
) -> None:
    """Let every block with a group in `changed` learn for `steps` steps to give what `trace` holds; call it after the cut.

    `groups` are the units left. Modifies the frozen weights of these blocks' projections, not their adapters.
    Source: blockwise local distillation, Bercovich et al., Puzzle (arXiv 2411.19146); that blocks learn on the pruned model's own
    activations and mend the errors of those below is ours.

    Raises:
        NumericsError: if a block's loss is NaN or infinite.
    """
    rows = on_device(model, rows)
    streams = {name: TokenStream(present) for name, present in trace.present.items()}
    handles: list[Any] = []
    count = len(next(iter(rows.values())))
    for path, members in blocks_of(groups).items():
        block = _Block(
            model, path, members, trace, streams[members[0].stream], scales, count=len(next(iter(rows.values())))
        )
        handles += block.watch()
        if any(group.name in changed for group in members):
            learn = block.learner(steps, torch.Generator().manual_seed(seed))
            handles.append(find_module(model, path).register_forward_pre_hook(learn, with_kwargs=True))
    for group in groups:
        if layer_of(group) is None:  # it learns nothing, but what it lost is missing from the stream
            handles += _Block(model, "", [group], trace, streams[group.stream], scales, count=count).watch()
    run(model, rows, handles)


class _Block:
    """A module with the reading projections in it; keeps the residual stream's account while it runs."""

    def __init__(
        self,
        model: nn.Module,
        path: str,
        groups: Sequence[Group],
        trace: Trace,
        stream: TokenStream,
        scales: Scales,
        *,
        count: int,
    ) -> None:
        self.model, self.path, self.groups, self.trace = model, path, groups, trace
        self.stream, self.scales, self.rows = stream, scales, count
        self._given: list[tuple[Group, str, Tensor]] | None = None

    def watch(self) -> list[Any]:
        """Watch what the reading projections give."""
        return [
            find_module(self.model, span.module).register_forward_hook(self._watcher(group, span.module))
            for group in self.groups
            for span in consumers(group)
        ]

    def _watcher(self, group: Group, path: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def after(_: nn.Module, __: Any, output: Tensor) -> None:
            if self._given is not None:
                self._given.append((group, path, output))
            elif group.residual:
                mine = output.flatten(0, -2)[self.stream.present]
                self.stream.missing = self.trace.outputs[path].to(mine) + self.stream.missing - mine

        return after

    def learner(self, steps: int, generator: torch.Generator) -> Callable[[nn.Module, Any, Any], None]:
        """Return a hook that lets the block learn just before it runs."""

        def learn(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            logger.info("%s learns on its own, %d steps", self.path, steps)
            with dense_for_a_while(self.model, linear_paths(self.groups)):
                descend(module, args, kwargs)

        def descend(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            places = self.stream.places(len(self.trace.outputs[consumers(self.groups[0])[0].module]), self.rows)
            weights = self._weights()
            masters = [weight.detach().float().clone() for weight in weights]
            optimiser = torch.optim.Adam([
                {"params": [master], "lr": RATE * self.scales[path]} for master, path in zip(masters, weights.values(), strict=True)
            ], fused=True)  # fmt: skip
            decay = torch.optim.lr_scheduler.LambdaLR(
                optimiser, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps))
            )
            batch = max(1, TOKENS // max(1, places.shape[1]))
            for weight in weights:
                weight.requires_grad_(True)
            try:
                for _ in range(steps):
                    chosen = torch.randint(self.rows, (min(batch, self.rows),), generator=generator).to(places.device)
                    with torch.enable_grad():
                        loss = self._loss(
                            module, _pick(args, chosen, self.rows), _pick(kwargs, chosen, self.rows), places[chosen]
                        )
                        gradients = torch.autograd.grad(loss, list(weights))
                    for master, gradient in zip(masters, gradients, strict=True):
                        master.grad = gradient.float()
                    optimiser.step()
                    decay.step()
                    for weight, master in zip(weights, masters, strict=True):
                        weight.data.copy_(master)
            finally:
                for weight in weights:
                    weight.requires_grad_(False)

        return learn

    def _weights(self) -> dict[nn.Parameter, str]:
        """Return the frozen weights and biases of the block's projections, and where each belongs."""
        layers = {path: base_layer(find_module(self.model, path)) for path in linear_paths(self.groups)}
        found = {getattr(layer, name, None): path for path, layer in layers.items() for name in ("weight", "bias")}
        return {tensor: path for tensor, path in found.items() if isinstance(tensor, nn.Parameter)}

    def _loss(self, module: nn.Module, args: Any, kwargs: Any, places: Int[Tensor, "rows seq"]) -> Float[Tensor, ""]:
        """Return the mean squared error of what the reading projections give, relative to what they gave, summed over them."""
        self._given = []
        try:
            module.forward(*args, **kwargs)
            loss, tokens = torch.zeros((), device=places.device), places[places >= 0]
            missing = self.stream.missing[tokens] if isinstance(self.stream.missing, Tensor) else 0.0
            for group, path, output in self._given:
                mine = output.flatten(0, -2)[(places >= 0).flatten()].float()
                former = self.trace.outputs[path][tokens.cpu()].to(mine)
                goal = former + missing if group.residual else former
                loss = loss + (goal - mine).square().mean() / former.square().mean().clamp_min(1e-12)
                missing = goal - mine if group.residual else missing
        finally:
            self._given = None
        if not torch.isfinite(loss):
            raise NumericsError(
                f"{self.path!r}: the loss of a block is {loss.item()}: lower --lr, or use --dtype float32"
            )
        return loss


def _pick(value: Any, chosen: Tensor, rows: int) -> Any:
    """Return some rows of every tensor that has one entry for each row."""
    if isinstance(value, Tensor):
        return value[chosen] if value.ndim > 1 and len(value) == rows else value
    if isinstance(value, Mapping):
        return {name: _pick(each, chosen, rows) for name, each in value.items()}
    return tuple(_pick(each, chosen, rows) for each in value) if isinstance(value, tuple) else value
