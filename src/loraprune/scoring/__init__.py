"""Scoring: from a criterion to one score per unit. Knows nothing about averaging or plans."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from loraprune.groups import EXPERTS, Group
from loraprune.scoring.base import Kept, Scorer
from loraprune.scoring.criteria import Activation, Criterion, Gate, Gradient, Routing
from loraprune.scoring.scorers.activation import ActivationScorer
from loraprune.scoring.scorers.experts import ExpertScorer, Scorers, can_score, check_scorable
from loraprune.scoring.scorers.gate import GateScorer
from loraprune.scoring.scorers.gradient import GradientScorer
from loraprune.scoring.scorers.saliency import SaliencyScorer

__all__ = ["Kept", "Scorer", "can_score", "check_scorable", "make_scorer"]


def make_scorer(
    criterion: Criterion, model: nn.Module, groups: Sequence[Group], *, power: int, normalize: bool, seed: int
) -> Scorer:
    """Return the scorer of a criterion on an adapted model.

    Raises:
        ConfigError: if the criterion cannot score the units of a group.
    """
    stacked = [group for group in groups if group.kind in EXPERTS]
    if stacked:
        scorer = ExpertScorer(criterion, model, stacked, power=power, seed=seed)
        others = [group for group in groups if group.kind not in EXPERTS]
        if not others:
            return scorer
        rest = make_scorer(criterion, model, others, power=power, normalize=normalize, seed=seed)
        return Scorers(*((each, frozenset(g.name for g in own)) for each, own in ((scorer, stacked), (rest, others))))
    if isinstance(criterion, Gate):
        return GateScorer(criterion, model, groups)
    if isinstance(criterion, Activation):
        return ActivationScorer(criterion, model, groups)
    if isinstance(criterion, Gradient):
        return GradientScorer(criterion, model, groups, power=power, normalize=normalize)
    check_scorable(criterion, groups)
    assert not isinstance(criterion, Routing)
    return SaliencyScorer(criterion, model, groups, power=power, normalize=normalize, seed=seed)
