"""Scores from the inputs of the consuming projections: statistics by channel, gathered by hooks.

Knows nothing about averaging or plans.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from loraprune.errors import ConfigError
from loraprune.groups import Group, consumers
from loraprune.models.adapters import channels_last, find_module, projection
from loraprune.models.streaming import at_hand
from loraprune.runtime.processes import add_up
from loraprune.runtime.sharding import gathered
from loraprune.scoring.base import Kept, Scores
from loraprune.scoring.criteria import Activation, Channels
from loraprune.scoring.scorers.elementwise import precise, side_sums, unit_totals
from loraprune.scoring.scorers.hooks import Hooks


class ActivationScorer(Hooks):
    """Sums z and z^2 of every channel over the tokens of a step, evaluation left out; no gradient is needed."""

    def __init__(self, criterion: Activation, model: nn.Module, groups: Sequence[Group]) -> None:
        super().__init__(groups)
        self.criterion, self.model = criterion, model
        self.sums: dict[str, tuple[int, Tensor, Tensor]] = {}
        for group in groups:
            for span in consumers(group):
                self._watch(find_module(model, span.module), span.module)

    def _watch(self, module: nn.Module, path: str) -> None:
        @torch.no_grad()
        def on_forward(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            # Recomputed passes of gradient checkpointing count twice: means do not change.
            if module.training:
                z = channels_last(module, args[0].detach()).flatten(0, -2).float()
                count, first, second = self.sums.get(path, (0, 0, 0))
                self.sums[path] = count + len(z), first + z.sum(0), second + z.square().sum(0)

        self.before(module, on_forward)

    @torch.no_grad()
    def collect(self, kept: Kept | None = None) -> Scores:
        """Return each unit's score, summed over its channels and over a group's consuming projections."""
        scores = {}
        for name, group in self.groups.items():
            values = {
                span.module: {span.side: self.criterion.function(self._channels(span.module))}
                for span in consumers(group)
            }
            readers = replace(group, spans=consumers(group))
            scores[name] = unit_totals(readers, values, kept=kept[name] if kept else None, normalize=False)
        self.forget()
        return precise(scores)

    def forget(self) -> None:
        """Discard the sums of this step."""
        self.sums.clear()

    def _channels(self, path: str) -> Channels:
        if path not in self.sums:
            raise ConfigError(
                f"no input reached {path!r}: the criterion {self.criterion.name!r} needs a forward pass in training mode"
            )
        tokens, first, second = self.sums[path]
        sums = add_up({"tokens": torch.tensor(tokens), "first": first, "second": second})
        module = find_module(self.model, path)
        with gathered(module), at_hand(module):
            proj = projection(self.model, path)
            norms = side_sums(proj, proj.merged_rows, power=2, wanted={"in"})["in"]
        count = int(sums["tokens"])
        return Channels(mean=sums["first"] / count, second_moment=sums["second"] / count, column_norm=norms)
