"""Gradient descent on a few parameters of a model, outside of its training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Descent:
    """Adam on float32 copies of parameters, whose own precision may be too low for small steps; the rate falls along a cosine."""

    def __init__(
        self,
        rates: Mapping[nn.Parameter, float],
        steps: int,
        *,
        warm_up: int = 1,
        betas: tuple[float, float] = (0.9, 0.999),
        largest: float = math.inf,
    ) -> None:
        """Begin `steps` steps.

        Args:
            rates: Peak learning rate of each parameter.
            steps: Steps until the rate is zero.
            warm_up: Steps over which the rate grows.
            betas: Decay of Adam's two moving averages.
            largest: Norm to which gradients are clipped.
        """
        self._parameters, self._largest = list(rates), largest
        self._masters = [parameter.detach().float().clone() for parameter in rates]
        groups = [{"params": [master], "lr": rate} for master, rate in zip(self._masters, rates.values(), strict=True)]
        self._optimiser = torch.optim.Adam(groups, betas=betas, fused=True)
        self._decay = torch.optim.lr_scheduler.LambdaLR(
            self._optimiser, lambda step: min(1.0, (step + 1) / warm_up) * 0.5 * (1 + math.cos(math.pi * step / steps))
        )

    def step(self, gradients: Sequence[Float[Tensor, "..."] | None]) -> None:
        """Change the parameters; those without a gradient stay."""
        for master, gradient in zip(self._masters, gradients, strict=True):
            master.grad = None if gradient is None else gradient.float()
        if math.isfinite(self._largest):
            torch.nn.utils.clip_grad_norm_(self._masters, self._largest)
        self._optimiser.step()
        self._decay.step()
        for parameter, master in zip(self._parameters, self._masters, strict=True):
            parameter.data.copy_(master)
