"""A criterion on the true gradient of single weights: G is formed for one tile at a time in the backward pass and dropped.

No parameter gets a gradient that it would not have without it, so clipping and LoRA's training do not notice.
Knows nothing about averaging or plans.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from loraprune.adapters import find_module, linear_paths, projection
from loraprune.criteria import Gradient
from loraprune.errors import ConfigError
from loraprune.groups import Group, Side
from loraprune.scoring.base import Kept
from loraprune.scoring.elementwise import side_sums, to_cpu, unit_totals, wanted_sides, working_dtype
from loraprune.scoring.hooks import Hooks


class GradientScorer(Hooks):
    """Gathers row and column sums of a criterion on (W, dL/dW) with hooks on the projections.

    A micro-batch's G is reduced as soon as it is known: with gradient accumulation the powers of the micro-batches'
    saliencies are added, where Eq 3 takes the power of their sum, which would need a whole G for every projection.
    """

    def __init__(
        self, criterion: Gradient, model: nn.Module, groups: Sequence[Group], *, power: int, normalize: bool
    ) -> None:
        super().__init__(groups)
        self.criterion, self.model, self.power, self.normalize = criterion, model, power, normalize
        self.sums: dict[str, dict[Side, Tensor]] = {}
        for group in groups:
            for path in linear_paths([group]):
                self._watch(find_module(model, path), group.name, path)

    def _watch(self, module: nn.Module, name: str, path: str) -> None:
        def on_forward(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            if output.requires_grad:
                x = args[0].detach()
                output.register_hook(lambda grad: self._gather(name, path, x, grad))

        self.after(module, on_forward)

    @torch.no_grad()
    def _gather(self, name: str, path: str, x: Tensor, grad: Tensor) -> None:
        proj = projection(self.model, path)
        dtype = working_dtype(proj)
        x, grad = x.flatten(0, -2), grad.flatten(0, -2)

        def rows(start: int, stop: int) -> Tensor:
            return self.criterion.function(proj.merged_rows(start, stop), (grad[:, start:stop].T @ x).to(dtype))

        sums = side_sums(proj, rows, power=self.power, wanted=wanted_sides(self.groups[name], path))
        old = self.sums.get(path)
        self.sums[path] = {side: old[side] + value for side, value in sums.items()} if old else sums

    def collect(self, kept: Kept | None = None) -> Mapping[str, Float[Tensor, " units"]]:
        """Return the power-transformed saliencies of this step, summed over the weights that each unit owns."""
        scores = {}
        for group in self.groups.values():
            missing = [path for path in linear_paths([group]) if path not in self.sums]
            if missing:
                raise ConfigError(
                    f"no gradient reached {missing[0]!r}: the criterion {self.criterion.name!r} needs a training step"
                )
            left = kept[group.name] if kept else None
            scores[group.name] = unit_totals(group, self.sums, kept=left, normalize=self.normalize)
        self.forget()
        return to_cpu(scores)

    def forget(self) -> None:
        """Drop what was gathered for this step."""
        self.sums.clear()
