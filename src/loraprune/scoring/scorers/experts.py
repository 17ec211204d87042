"""Scores of experts and of their channels, whose stacked weights carry no LoRA and whose channels no hook can reach.

Weights are read one expert at a time; a gate on a whole expert is a factor on its router weight; for a criterion on routing the experts
run once more without those weights.
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
from loraprune.scoring.base import Kept, Scorer, Scores, kept_scores
from loraprune.scoring.criteria import Criterion, Gate, Routing, Saliency, Tile
from loraprune.scoring.scorers.elementwise import precise, span_units
from loraprune.scoring.scorers.hooks import Hooks


def can_score(criterion: Criterion, group: Group) -> bool:
    """Return whether a criterion can score the units of a group: nearly any where there is LoRA, few where experts are stacked."""
    if group.kind not in EXPERTS:
        return not isinstance(criterion, Routing)
    if isinstance(criterion, Gate | Routing):
        return group.kind == "expert"
    return isinstance(criterion, Saliency) and not criterion.needs_gradient


def check_scorable(criterion: Criterion, groups: Sequence[Group]) -> None:
    """Refuse groups whose units a criterion cannot score.

    Raises:
        ConfigError: for a criterion on experts and other units, or the other way round.
    """
    odd = [group for group in groups if not can_score(criterion, group)]
    if odd and odd[0].kind in EXPERTS:
        raise ConfigError(
            f"--criterion {criterion.name}: it cannot score units of kind {odd[0].kind}, whose stacked weights carry no LoRA; "
            "choose --criterion magnitude, for whole experts also gate or reap, or leave the kind out of --kinds"
        )
    if odd:
        raise ConfigError(
            f"--criterion {criterion.name}: it scores whole experts, and no units of kind {odd[0].kind}; give --kinds expert for a mixture "
            "of experts, or another criterion"
        )


class ExpertScorer(Hooks):
    """Scores experts by a gate or routing criterion, and experts and channels by a criterion on the size of weights."""

    def __init__(
        self, criterion: Criterion, model: nn.Module, groups: Sequence[Group], *, power: int, seed: int
    ) -> None:
        super().__init__(groups)
        check_scorable(criterion, groups)
        self.criterion, self.model, self.power = criterion, model, power
        self.generator = torch.Generator().manual_seed(seed)
        self.sums: dict[str, Tensor] = {}
        self.samples: dict[str, int] = defaultdict(int)
        self.routed: dict[str, Tensor] = {}
        """group -> tokens of this step that were routed to each expert"""
        self._rows: dict[str, int] = {}
        if isinstance(criterion, Gate):
            for group in groups:
                self._watch(model, group)
        if isinstance(criterion, Routing):
            for group in groups:
                self._watch_outputs(find_module(model, _stack_of(group)), group.name)

    def _watch_outputs(self, stack: nn.Module, name: str) -> None:
        called: list[bool] = []

        @torch.no_grad()
        def on_experts(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            if called or not stack.training:  # by the call below, which runs this hook too
                return
            x, chosen, weights = (each.detach() for each in args)
            called.append(True)
            try:
                outputs = stack(
                    x.repeat_interleave(chosen.shape[1], 0), chosen.reshape(-1, 1), torch.ones_like(weights).view(-1, 1)
                )
            finally:
                called.clear()
            dtype = torch.promote_types(torch.float32, outputs.dtype)
            self._add_routed(name, chosen.flatten(), weights.flatten().to(dtype), outputs.to(dtype).norm(dim=1))

        self.before(stack, on_experts)

    def _add_routed(self, name: str, chosen: Tensor, gates: Float[Tensor, " n"], norms: Float[Tensor, " n"]) -> None:
        """Add what a micro-batch sent to the experts; recomputed passes of gradient checkpointing count twice: means do not change."""
        assert isinstance(self.criterion, Routing)
        scores, none = self.criterion.function(gates, norms), gates.new_zeros(self.groups[name].units)
        sums, counts = none.scatter_add(0, chosen, scores), none.scatter_add(0, chosen, torch.ones_like(scores))
        self.sums[name] = self.sums.get(name, 0) + sums
        self.routed[name] = self.routed.get(name, 0) + counts

    def _watch(self, model: nn.Module, group: Group) -> None:
        stack = _stack_of(group)

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
    def collect(self, kept: Kept | None = None) -> Scores:
        """Return each unit's score, over the weights that it owns, or the mean over samples of its gate or over tokens of its output."""
        scores = {name: self._score(group) for name, group in self.groups.items()}
        self.forget()
        return kept_scores(precise(scores), kept)

    def forget(self) -> None:
        """Discard the sums of this step."""
        self.sums.clear()
        self.samples.clear()
        self.routed.clear()

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
        if isinstance(self.criterion, Routing):
            if group.name not in self.sums:
                raise ConfigError(
                    f"no token reached {group.name!r}: the criterion {self.criterion.name!r} needs a forward pass in training mode"
                )
            found = add_up({"scores": self.sums[group.name], "routed": self.routed[group.name]})
            return found["scores"] / found["routed"].clamp_min(1)  # zero for an expert that no token was sent to
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


def _stack_of(group: Group) -> str:
    """Return the path of the stack that holds a group's experts."""
    return next(span.module for span in group.spans if span.side == "stack")


class Scorers:
    """Several scorers of one model, each with separate groups."""

    def __init__(self, *members: tuple[Scorer, frozenset[str]]) -> None:
        self.members = members

    def collect(self, kept: Kept | None = None) -> Scores:
        """Return the scores of all groups."""
        return {name: score for member, _ in self.members for name, score in member.collect(kept).items()}

    def forget(self) -> None:
        """Discard the sums of this step."""
        for member, _ in self.members:
            member.forget()

    def listen(self, on: bool) -> None:
        """Gather what scores need, or not."""
        for member, _ in self.members:
            member.listen(on)

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
