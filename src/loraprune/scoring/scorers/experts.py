"""Scores of experts and of their channels, whose stacked weights carry no LoRA and whose channels no hook can reach.

Weights are read one expert at a time; a gate on a whole expert is a factor on its router weight.
Knows nothing about averaging or plans.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from loraprune.errors import ConfigError
from loraprune.groups import EXPERTS, Group
from loraprune.models.adapters import STACKS, cuts, find_module
from loraprune.runtime.processes import add_up, count
from loraprune.scoring.base import Kept, Scorer
from loraprune.scoring.criteria import Criterion, Gate, Saliency, Tile
from loraprune.scoring.scorers.elementwise import span_units, to_cpu
from loraprune.scoring.scorers.hooks import Hooks


def can_score(criterion: Criterion, group: Group) -> bool:
    """Return whether a criterion can score the units of a group: any where there is LoRA, few where experts are stacked."""
    if group.kind not in EXPERTS:
        return True
    if isinstance(criterion, Gate):
        return group.kind == "expert"
    return isinstance(criterion, Saliency) and not criterion.needs_gradient


class ExpertScorer(Hooks):
    """Scores experts by a gate criterion, and experts and channels by a criterion on the size of weights."""

    def __init__(
        self, criterion: Criterion, model: nn.Module, groups: Sequence[Group], *, power: int, seed: int
    ) -> None:
        super().__init__(groups)
        odd = [group for group in groups if not can_score(criterion, group)]
        if odd:
            raise ConfigError(
                f"--criterion {criterion.name}: it cannot score units of kind {odd[0].kind}, whose stacked weights carry no LoRA; "
                "choose --criterion magnitude, for whole experts also gate, or leave the kind out of --kinds"
            )
        self.criterion, self.model, self.power = criterion, model, power
        self.generator = torch.Generator().manual_seed(seed)
        self.sums: dict[str, Tensor] = {}
        self.samples: dict[str, int] = defaultdict(int)
        self._rows: dict[str, int] = {}
        if isinstance(criterion, Gate):
            for group in groups:
                self._watch(model, group)

    def _watch(self, model: nn.Module, group: Group) -> None:
        stack = next(span.module for span in group.spans if span.side == "stack")

        def on_block(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            self._rows[group.name] = len(args[0])  # experts see tokens, no longer samples

        def on_experts(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            chosen, weights = args[1:]
            if weights.requires_grad:
                values = weights.detach()
                weights.register_hook(lambda grad: self._gather(group.name, chosen, values * grad))

        self.before(find_module(model, stack.rpartition(".")[0]), on_block)
        self.before(find_module(model, stack), on_experts)

    @torch.no_grad()
    def _gather(self, name: str, chosen: Tensor, effects: Float[Tensor, "tokens chosen"]) -> None:
        assert isinstance(self.criterion, Gate)
        # Gradients are averaged over processes later on: the loss of each counts as often as there are processes.
        effects = effects / count()
        by_token = effects.new_zeros(len(effects), self.groups[name].units).scatter_add_(1, chosen, effects)
        scores = self.criterion.function(by_token.float().unflatten(0, (self._rows[name], -1)).sum(1))
        self.sums[name] = self.sums[name] + scores if name in self.sums else scores
        self.samples[name] += self._rows[name]

    @torch.no_grad()
    def collect(self, kept: Kept | None = None) -> Mapping[str, Float[Tensor, " units"]]:
        """Return each unit's score, over the weights that it owns or the mean over samples of its gate."""
        scores = to_cpu({name: self._score(group) for name, group in self.groups.items()})
        self.forget()
        return {name: values[torch.tensor(kept[name])] for name, values in scores.items()} if kept else scores

    def forget(self) -> None:
        """Discard the sums of this step."""
        self.sums.clear()
        self.samples.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the random criterion's generator."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of `state_dict()`."""
        self.generator.set_state(state["generator"])

    def _score(self, group: Group) -> Float[Tensor, " units"]:
        if isinstance(self.criterion, Gate):
            if group.name not in self.sums:
                raise ConfigError(
                    f"no gradient reached {group.name!r}: the criterion {self.criterion.name!r} needs a training step"
                )
            found = add_up({"scores": self.sums[group.name], "samples": torch.tensor(self.samples[group.name])})
            return self.criterion.finish(found["scores"]) / found["samples"]
        spans = [span for span in group.spans if span.side in STACKS]
        stack = find_module(self.model, spans[0].module)
        sums = {name: self._weight_sums(getattr(stack, name)) for name in ("gate_up_proj", "down_proj")}
        parts = [
            span_units(sums[cut.name][cut.dim], span, group.units) for span in spans for cut in cuts(stack, span.side)
        ]
        return torch.stack(parts).sum(0)

    def _weight_sums(self, stacked: Float[Tensor, "experts rows columns"]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the sums of the saliencies' power by expert, by row and by column."""
        assert isinstance(self.criterion, Saliency)
        by_expert, by_row, by_column = ([], 0.0, 0.0)  # type: tuple[list[Tensor], Tensor | float, Tensor | float]
        for base in stacked.detach().float():
            a, b = base.new_zeros(0, base.shape[1]), base.new_zeros(len(base), 0)  # no adapter
            saliency = self.criterion.function(Tile(base, a, b, a, b, b, 1.0, self.generator)).abs().pow(self.power)
            by_expert.append(saliency.sum())
            by_row, by_column = by_row + saliency.sum(1), by_column + saliency.sum(0)
        assert isinstance(by_row, Tensor)
        assert isinstance(by_column, Tensor)
        return torch.stack(by_expert), by_row, by_column


class Scorers:
    """Several scorers of one model, each with separate groups."""

    def __init__(self, *members: tuple[Scorer, frozenset[str]]) -> None:
        self.members = members

    def collect(self, kept: Kept | None = None) -> Mapping[str, Float[Tensor, " units"]]:
        """Return the scores of all groups."""
        return {name: score for member, _ in self.members for name, score in member.collect(kept).items()}

    def forget(self) -> None:
        """Discard the sums of this step."""
        for member, _ in self.members:
            member.forget()

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resumed run needs between two steps."""
        return {"members": [member.state_dict() for member, _ in self.members]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of `state_dict()`."""
        for (member, _), own in zip(self.members, state["members"], strict=True):
            member.load_state_dict(own)

    def resize(self, groups: Sequence[Group]) -> None:
        """Use the groups of the smaller model from now on."""
        for member, names in self.members:
            member.resize([group for group in groups if group.name in names])

    def close(self) -> None:
        """Remove all hooks."""
        for member, _ in self.members:
            member.close()
