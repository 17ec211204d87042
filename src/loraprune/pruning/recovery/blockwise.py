"""Blockwise reconstruction: a block that lost units is trained to reproduce its output from before the removal.

Gradient descent runs inside one block at a time, on the actual outputs of the blocks below. The targets are the outputs of its
reading projections before the removal, plus what is still missing from the residual stream. No gradient leaves a block, so a step
costs a fraction of a training step. Knows nothing about scores.
"""

from __future__ import annotations

import logging
import math
import posixpath
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from loraprune.errors import ConfigError, NumericsError
from loraprune.groups import Group, consumers, layer_of
from loraprune.models.adapters import base_layer, cuts, dense_for_a_while, find_module, linear_paths
from loraprune.pruning.recovery.calls import Calls
from loraprune.pruning.recovery.compensation import Gain
from loraprune.pruning.recovery.descent import Descent
from loraprune.pruning.recovery.finished import Finished
from loraprune.pruning.recovery.rows import Rows, on_device, rows_aside, run
from loraprune.pruning.recovery.stream import TokenStream, token_streams
from loraprune.pruning.recovery.trace import Trace
from loraprune.runtime.progress import Advance, phase

RATE = 0.4
"""largest step of a weight, as a fraction of the RMS of its tensor, times the square root of the inputs of its projection; docs/log.md
compares values"""
TOKENS = 256
"""tokens per step of a block, in whole rows"""

logger = logging.getLogger(__name__)


def check_blocks(groups: Sequence[Group]) -> None:
    """Refuse units that belong to no single block.

    Raises:
        ConfigError: for channels of convolutions.
    """
    for group in groups:
        if group.kind == "channel":
            raise ConfigError(f"--local: channels of {group.name!r} are not part of a single block; leave --local out")


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
"""path of a projection -> largest step of one of its weights"""


def weight_scales(model: nn.Module, groups: Sequence[Group]) -> Scales:
    """Return the largest step of a weight of every projection; from the dense model, so that masked and cut ones train alike.

    Adam moves all weights of a row by about one step, and inputs that point the same way add up: an output can move by
    step * sqrt(inputs) relative to its size. So that it moves alike at every width, steps fall with the square root of the inputs,
    as in Yang et al., Tensor Programs V (arXiv 2203.03466), for hidden layers.
    """
    scales = {}
    for path in linear_paths(groups):
        weight = next(cuts(base_layer(find_module(model, path)), "out")).values().float().flatten(1)
        scales[path] = RATE * weight.square().mean().sqrt().item() / math.sqrt(weight.shape[1])
    return scales


def fit_blocks_(
    model: nn.Module,
    groups: Sequence[Group],
    changed: Collection[str],
    trace: Trace,
    rows: Rows,
    options: BlockOptions,
) -> dict[str, Gain]:
    """Train every block with a group in `changed` to reproduce what `trace` holds; call it after the cut.

    `groups` are the units left. Modifies the frozen weights of these blocks' projections, not their adapters. A block whose loss on
    rows kept aside does not fall gets its weights back.
    Source: blockwise local distillation, Bercovich et al., Puzzle (arXiv 2411.19146); that blocks train on the pruned model's own
    activations and correct the errors of those below is ours.

    Returns:
        Path of every block -> the errors before and after its training.

    Raises:
        NumericsError: if the target of a block is NaN or infinite.
    """
    rows = on_device(model, rows)
    streams = token_streams(trace, rows)
    handles: list[Any] = []
    gains: dict[str, Gain] = {}
    count = len(next(iter(rows.values())))
    blocks = blocks_of(groups)
    learning = [path for path, members in blocks.items() if any(group.name in changed for group in members)]
    with phase("training blocks", options.steps * len(learning)) as advance:
        for path, members in blocks.items():
            block = _Block(model, path, members, trace, streams[members[0].stream], count=count)
            handles += block.watch()
            if path in learning:
                learn = block.learner(options, gains, advance)
                handles.append(find_module(model, path).register_forward_pre_hook(learn, with_kwargs=True))
        for group in groups:
            if layer_of(group) is None:  # it learns nothing, but what it lost is missing from the stream
                handles += _Block(model, "", [group], trace, streams[group.stream], count=count).watch()
        run(model, rows, handles)
    return gains


@dataclass(frozen=True, slots=True)
class BlockOptions:
    """Settings of the training of blocks."""

    scales: Scales
    steps: int
    seed: int
    finished: Finished | None = None
    """blocks that are already trained"""


class _Block:
    """A module with its reading projections; tracks the residual stream while it runs."""

    def __init__(
        self,
        model: nn.Module,
        path: str,
        groups: Sequence[Group],
        trace: Trace,
        stream: TokenStream,
        *,
        count: int,
    ) -> None:
        self.model, self.path, self.groups, self.trace = model, path, groups, trace
        self.stream, self.rows = stream, count
        self._given: list[tuple[Group, str, Tensor]] | None = None

    def watch(self) -> list[Any]:
        """Hook the outputs of the reading projections."""
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
                mine = output.flatten(0, -2)[self.stream.present].float()
                self.stream.pass_on(self.trace.outputs[path].to(mine), mine)

        return after

    def learner(
        self, options: BlockOptions, gains: dict[str, Gain], advance: Advance
    ) -> Callable[[nn.Module, Any, Any], None]:
        """Return a hook that trains the block just before it runs: by then its input is the actual output of the blocks below."""

        # Training inside a forward pre-hook gives every block the input that the pruned and already reconstructed blocks below send, in one
        # pass over the model and without storing it for all blocks. BRECQ reconstructs block by block in the same order.
        # Source: Li et al., BRECQ (arXiv 2102.05426), for quantised weights.
        def learn(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            with dense_for_a_while(self.model, linear_paths(self.groups)):
                weights = self._weights()
                known = options.finished.read(self.path) if options.finished else None
                if known:
                    gains[self.path], tensors = known
                    _copy_(weights, [tensors[str(place)] for place in range(len(weights))])
                    advance(options.steps, state=self.path)
                    return
                places = self.stream.places()
                self._calls = Calls(module, args, kwargs, places, max(1, TOKENS // max(1, places.shape[1])))
                gains[self.path] = self._train(weights, options, advance)
                del self._calls  # it holds the inputs of the block for all rows
                if options.finished:
                    tensors = {str(place): weight.detach() for place, weight in enumerate(weights)}
                    options.finished.write(self.path, gains[self.path], tensors)

        return learn

    def _train(self, weights: Mapping[nn.Parameter, str], options: BlockOptions, advance: Advance) -> Gain:
        """Train the block on most rows; if its loss on the others does not fall, it gets its weights back."""
        aside = rows_aside(self.rows)
        judged, taught = (rows.nonzero().flatten() for rows in (aside, ~aside if not aside.all() else aside))
        former = [weight.detach().clone() for weight in weights]
        self._check_finite()
        before = self._loss_on(judged)
        for weight in weights:
            weight.requires_grad_(True)
        try:
            self._descend(weights, taught, options, advance)
        finally:
            for weight in weights:
                weight.requires_grad_(False)
        after = self._loss_on(judged)
        if after < before:
            return Gain(before, after)
        _copy_(weights, former)  # where the loss is NaN too
        return Gain(before, before)

    def _descend(
        self, weights: Mapping[nn.Parameter, str], taught: Int[Tensor, " some"], options: BlockOptions, advance: Advance
    ) -> None:
        """Take steps of Adam on drawn rows."""
        generator = torch.Generator().manual_seed(options.seed)
        descent = Descent({weight: options.scales[path] for weight, path in weights.items()}, options.steps)
        for _ in range(options.steps):
            size = min(self._calls.batch, len(taught))
            chosen = taught[torch.randint(len(taught), (size,), generator=generator)]
            with torch.enable_grad():  # the pass around this hook builds no graph
                gradients = torch.autograd.grad(self._loss(chosen), list(weights))
            descent.step(gradients)
            advance(1, state=self.path)

    def _check_finite(self) -> None:
        for path in (span.module for group in self.groups for span in consumers(group)):
            if not torch.isfinite(self.trace.outputs[path]).all():
                raise NumericsError(f"{path!r}: an output is NaN or infinite: lower --lr, or use --dtype float32")

    @torch.no_grad()
    def _loss_on(self, rows: Int[Tensor, " some"]) -> float:
        """Return the mean loss on some rows."""
        parts = rows.split(self._calls.batch)
        losses = [self._loss(part).item() * len(part) for part in parts]
        return sum(losses) / len(rows)

    def _weights(self) -> dict[nn.Parameter, str]:
        """Return the frozen weights and biases of the block's projections, and where each belongs."""
        layers = {path: base_layer(find_module(self.model, path)) for path in linear_paths(self.groups)}
        found = {getattr(layer, name, None): path for path, layer in layers.items() for name in ("weight", "bias")}
        return {tensor: path for tensor, path in found.items() if isinstance(tensor, nn.Parameter)}

    def _loss(self, chosen: Int[Tensor, " some"]) -> Float[Tensor, ""]:
        """Return the weighted squared error of the reading projections' outputs, relative to the former ones, summed over them."""
        self._given = []
        try:
            self._calls.run(chosen)
            places = self._calls.places[chosen]
            tokens = places[places >= 0]
            loss = torch.zeros(())
            stream = self.stream.at(tokens)
            for group, path, output in self._given:
                mine = output.flatten(0, -2)[(places >= 0).flatten()].float()
                former = self.trace.outputs[path][tokens].to(mine)
                goal = former + stream.missing if group.residual else former
                counts = stream.weights(former, residual=group.residual)
                loss = loss.to(mine) + (counts * (goal - mine).square()).mean() / (
                    counts * former.square()
                ).mean().clamp_min(1e-12)
                if group.residual:
                    stream.pass_on(former, mine)
        finally:
            self._given = None
        return loss


def _copy_(weights: Iterable[Tensor], values: Iterable[Tensor]) -> None:
    """Give weights the values of other tensors, of another precision perhaps."""
    for weight, value in zip(weights, values, strict=True):
        weight.data.copy_(value)
