"""A criterion on the effect of each unit's gate, gathered by hooks on the inputs of the consuming projections.

Knows nothing about averaging or plans.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from loraprune.errors import ConfigError
from loraprune.groups import Group, readers
from loraprune.models.adapters import channels_last, find_module
from loraprune.runtime.processes import add_up, count
from loraprune.scoring.base import Kept, Scores, kept_scores
from loraprune.scoring.criteria import Gate
from loraprune.scoring.scorers.elementwise import precise
from loraprune.scoring.scorers.hooks import Hooks, call_in_backward


class GateScorer(Hooks):
    """Gathers a gate criterion over all micro-batches of a step.

    With a gate m = 1 on the channels z of a unit, dL/dm = sum over tokens and channels of z * dL/dz, and over all
    projections that read the unit: a unit of several layers has one gate.
    Source: Michel et al., Are Sixteen Heads Really Better than One? (arXiv 1905.10650), whose masks of heads are such gates.
    """

    def __init__(self, criterion: Gate, model: nn.Module, groups: Sequence[Group]) -> None:
        super().__init__(groups)
        self.criterion = criterion
        self.sums: dict[str, Tensor] = {}
        self.samples: dict[str, int] = {}
        self._open: dict[str, dict[str, Tensor]] = {}
        """group -> reading projection -> (samples, units) gradients of the gates there, in the present micro-batch"""
        self._calls = 0
        self._open_call: dict[str, int] = {}
        """group -> the call of the model that its open gradients belong to: layers that share weights read a unit several times"""
        self.before(model, self._count)
        for group in groups:
            for span in readers(group):
                self._watch(find_module(model, span.module), group.name, span.module)

    def _count(self, _: nn.Module, __: tuple[Tensor, ...]) -> None:
        self._calls += 1

    def _watch(self, module: nn.Module, name: str, path: str) -> None:
        def on_forward(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            # In evaluation, in the first pass of gradient checkpointing, and where a block learns on its own.
            if not (args[0].requires_grad and module.training):
                return None
            call = self._calls

            def gather(z: Tensor, grad: Tensor) -> None:
                self._gather(name, path, channels_last(module, z), channels_last(module, grad), call=call)

            z = call_in_backward(
                args[0], args[0], gather
            )  # the gradient of this reader alone: others may read the same tensor
            return (z, *args[1:])

        self.before(module, on_forward)

    @torch.no_grad()
    def _gather(self, name: str, path: str, z: Tensor, grad: Tensor, *, call: int) -> None:
        if name in self._open and self._open_call[name] != call:  # the next micro-batch has begun
            self._close(name)
        self._open_call[name] = call
        per_channel = (z * grad).reshape(len(z), -1, z.shape[-1]).float().sum(1)
        per_unit = per_channel.unflatten(-1, (self.groups[name].units, -1)).sum(-1)
        found = self._open.setdefault(name, {})
        found[path] = found[path] + per_unit if path in found else per_unit

    def _close(self, name: str) -> None:
        """Add the scores of a micro-batch whose gates' gradients are complete."""
        # Gradients are averaged over processes later on: the loss of each counts as often as there are processes.
        gates = sum(self._open.pop(name).values(), torch.zeros(())) / count()
        scores = self.criterion.function(gates)
        self.sums[name] = self.sums[name] + scores if name in self.sums else scores
        self.samples[name] = self.samples.get(name, 0) + len(gates)

    def collect(self, kept: Kept | None = None) -> Scores:
        """Return the mean over the samples of all processes of each unit's score."""
        for name in tuple(self._open):
            self._close(name)
        missing = [name for name in self.groups if name not in self.sums]
        if missing:
            raise ConfigError(
                f"no gradient reached the input of {missing[0]!r}: the criterion {self.criterion.name!r} needs a training step"
            )
        sums = add_up({name: self.sums[name] for name in self.groups})
        samples = add_up({name: torch.tensor(self.samples[name]) for name in self.groups})
        self.forget()
        scores = {name: self.criterion.finish(sums[name]) / samples[name] for name in self.groups}
        return kept_scores(precise(scores), kept)

    def forget(self) -> None:
        """Discard the sums of this step."""
        self._open.clear()
        self.sums.clear()
        self.samples.clear()
