"""A criterion on the true gradient of single weights: G is formed for one tile at a time in the backward pass and dropped.

No parameter gets a gradient that it would not have without it, so clipping and LoRA's training do not notice.
Knows nothing about averaging or plans.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from loraprune.errors import ConfigError
from loraprune.groups import Group, Side
from loraprune.models.adapters import channels_last, find_module, linear_paths, projection, read_columns
from loraprune.runtime.processes import add_up, count
from loraprune.scoring.base import Kept, Scores
from loraprune.scoring.criteria import Gradient
from loraprune.scoring.scorers.elementwise import precise, side_sums, unit_totals, wanted_sides, working_dtype
from loraprune.scoring.scorers.hooks import Hooks, call_in_backward


class GradientScorer(Hooks):
    """Gathers row and column sums of a criterion on (W, dL/dW) with hooks on the projections.

    A micro-batch's G is reduced as soon as it is known: with gradient accumulation the powers of the micro-batches'
    saliencies are added, where Eq 3 takes the power of their sum, which would need a whole G for every projection. Those of
    several processes are added like those of micro-batches.
    """

    def __init__(
        self, criterion: Gradient, model: nn.Module, groups: Sequence[Group], *, power: int, normalize: bool
    ) -> None:
        super().__init__(groups)
        self.criterion, self.model, self.power, self.normalize = criterion, model, power, normalize
        self.sums: dict[str, dict[str, dict[Side, Tensor]]] = {group.name: {} for group in groups}
        """group -> projection -> sums: a kernel may stand between two groups"""
        for group in groups:
            for path in linear_paths([group]):
                self._watch(find_module(model, path), group.name, path)

    def _watch(self, module: nn.Module, name: str, path: str) -> None:
        def on_forward(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            if not (output.requires_grad and module.training):
                return None
            return call_in_backward(output, args[0], lambda x, grad: self._gather(name, module, path, x, grad))

        self.after(module, on_forward)

    @torch.no_grad()
    def _gather(self, name: str, module: nn.Module, path: str, x: Tensor, grad: Tensor) -> None:
        proj = projection(self.model, path)
        dtype = working_dtype(proj)
        # Gradients are averaged over processes later on: the loss of each counts as often as there are processes.
        x, grad = read_columns(module, x).flatten(0, -2), channels_last(module, grad).flatten(0, -2) / count()

        def rows(start: int, stop: int) -> Tensor:
            return self.criterion.function(proj.merged_rows(start, stop), (grad[:, start:stop].T @ x).to(dtype))

        sums = side_sums(proj, rows, power=self.power, wanted=wanted_sides(self.groups[name], path))
        mine = self.sums[name]
        mine[path] = {side: mine[path][side] + value for side, value in sums.items()} if path in mine else sums

    def collect(self, kept: Kept | None = None) -> Scores:
        """Return the power-transformed saliencies of this step, summed over the weights that each unit owns."""
        scores = {}
        for group in self.groups.values():
            missing = [path for path in linear_paths([group]) if path not in self.sums[group.name]]
            if missing:
                raise ConfigError(
                    f"no gradient reached {missing[0]!r}: the criterion {self.criterion.name!r} needs a training step"
                )
            left = kept[group.name] if kept else None
            sums = {path: added_up(self.sums[group.name][path]) for path in linear_paths([group])}
            scores[group.name] = unit_totals(group, sums, kept=left, normalize=self.normalize)
        self.forget()
        return precise(scores)

    def forget(self) -> None:
        """Discard the sums of this step."""
        self.sums = {name: {} for name in self.sums}


def added_up(sums: Mapping[Side, Float[Tensor, " entries"]]) -> dict[Side, Float[Tensor, " entries"]]:
    """Return the sums of both sides of a projection over all processes."""
    found = add_up({str(side): values for side, values in sums.items()})
    return {side: found[side] for side in sums}
