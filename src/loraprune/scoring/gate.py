"""A criterion on the effect of each unit's gate, gathered by hooks on the inputs of the consuming projections.

Knows nothing about averaging or plans.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from loraprune.adapters import find_module
from loraprune.criteria import Gate
from loraprune.errors import ConfigError
from loraprune.groups import Group, consumers
from loraprune.scoring.base import Kept
from loraprune.scoring.elementwise import to_cpu
from loraprune.scoring.hooks import Hooks


class GateScorer(Hooks):
    """Gathers a gate criterion over all micro-batches of a step.

    With a gate m = 1 on the channels z of a unit, dL/dm = sum over tokens and channels of z * dL/dz.
    Source: PAPER.md section 2, "gate gradient".
    """

    def __init__(self, criterion: Gate, model: nn.Module, groups: Sequence[Group]) -> None:
        super().__init__(groups)
        self.criterion = criterion
        self.sums: dict[str, Tensor] = {}
        self.samples: dict[str, int] = {}
        for group in groups:
            for span in consumers(group):
                self._watch(find_module(model, span.module), group.name)

    def _watch(self, module: nn.Module, name: str) -> None:
        def on_forward(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            z = args[0]
            if z.requires_grad:  # not in evaluation, nor in the first pass of gradient checkpointing
                values = z.detach()  # a hook that held z itself would be a cycle and keep the graph with its old shapes
                z.register_hook(lambda grad: self._gather(name, values, grad))

        self.before(module, on_forward)

    @torch.no_grad()
    def _gather(self, name: str, z: Tensor, grad: Tensor) -> None:
        per_channel = (z * grad).flatten(1, -2).float().sum(1)
        scores = self.criterion.function(per_channel.unflatten(-1, (self.groups[name].units, -1)).sum(-1))
        self.sums[name] = self.sums[name] + scores if name in self.sums else scores
        self.samples[name] = self.samples.get(name, 0) + len(z)

    def collect(self, kept: Kept | None = None) -> Mapping[str, Float[Tensor, " units"]]:
        """Return the mean over samples of each unit's score, summed over a group's consuming projections."""
        missing = [name for name in self.groups if name not in self.sums]
        if missing:
            raise ConfigError(
                f"no gradient reached the input of {missing[0]!r}: the criterion {self.criterion.name!r} needs a training step"
            )
        scores = to_cpu({name: self.criterion.finish(self.sums[name]) / self.samples[name] for name in self.groups})
        self.forget()
        return {name: values[torch.tensor(kept[name])] for name, values in scores.items()} if kept else scores

    def forget(self) -> None:
        """Drop what was gathered for this step."""
        self.sums.clear()
        self.samples.clear()
