"""Weighted least squares with a ridge that tokens kept aside choose. Knows nothing about models."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from loraprune.errors import NumericsError

RIDGES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003)
"""candidates of the ridge, as multiples of the second moments' diagonal; rows kept aside choose"""


@dataclass(frozen=True, slots=True)
class Fit:
    """A weighted least-squares problem: bring z W^T near to a goal."""

    z: Float[Tensor, "tokens kept"]
    weight: Float[Tensor, "out kept"]
    goal: Float[Tensor, "tokens out"]
    weights: Float[Tensor, "tokens 1"]
    """weight of each token"""
    aside: Bool[Tensor, " tokens"]
    """tokens for evaluation; the others are for the fit. If all or none are aside, all are used for both"""

    @property
    def learning(self) -> Bool[Tensor, " tokens"]:
        """Return which tokens are for the fit."""
        return ~self.aside if not self.aside.all() else self.aside

    @property
    def evaluating(self) -> Bool[Tensor, " tokens"]:
        """Return which tokens are for evaluation."""
        return self.aside if self.aside.any() else ~self.aside


def refit(
    fit: Fit, *, with_bias: bool, path: str
) -> tuple[Float[Tensor, "out kept"], Float[Tensor, " out"], Float[Tensor, ""], Float[Tensor, ""]]:
    """Return the changes D, d of weight and bias that minimise the weighted |z (W + D)^T + d - goal|^2 + |[D d] R|^2.

    R^2 is diagonal, a multiple of the diagonal of the second moments, so that it is alike for channels of any size. Which multiple is
    decided by the tokens that are aside: from the largest of `RIDGES` down, as long as their error falls. Where none lowers it, D is 0.
    Without a bias d is zero.

    Returns:
        D, d, and the weighted squared error of the tokens aside before and after.

    Raises:
        NumericsError: if an activation is NaN or infinite.
    """
    z = torch.cat((fit.z, fit.z.new_ones(len(fit.z), 1)), dim=1) if with_bias else fit.z
    weight = torch.cat((fit.weight, fit.weight.new_zeros(len(fit.weight), 1)), dim=1) if with_bias else fit.weight
    learned = fit.learning
    weighted = z[learned] * fit.weights[learned]
    moments = weighted.T @ z[learned]
    cross = weighted.T @ fit.goal[learned] - moments @ weight.T  # of the error that is left, which is never formed
    if not torch.isfinite(moments).all() or not torch.isfinite(cross).all():
        raise NumericsError(f"{path!r}: an activation is NaN or infinite: lower --lr, or use --dtype float32")
    evaluated = z[fit.evaluating], fit.goal[fit.evaluating], fit.weights[fit.evaluating]
    change = torch.zeros_like(weight)
    before = left = _error(weight, *evaluated)
    diagonal = moments.diagonal().clone()
    floor = diagonal.mean().clamp_min(torch.finfo(z.dtype).tiny) * torch.finfo(z.dtype).eps * len(diagonal)
    for ridge in RIDGES:
        damped = moments.clone()
        damped.diagonal().add_(ridge * diagonal + floor)
        factor, failed = torch.linalg.cholesky_ex(damped)
        if failed:
            break
        candidate = torch.cholesky_solve(cross, factor).T
        error = _error(weight + candidate, *evaluated)
        if not error < left:
            break
        change, left = candidate, error
    return (
        (change[:, :-1], change[:, -1], before, left)
        if with_bias
        else (change, change.new_zeros(len(change)), before, left)
    )


def _error(weight: Tensor, z: Tensor, goal: Tensor, weights: Tensor) -> Float[Tensor, ""]:
    """Return the weighted squared error of z W^T."""
    return (weights * (goal - z @ weight.T).square()).sum()
