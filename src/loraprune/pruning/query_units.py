"""Query heads as units beside key-value heads: scored together, until a shape with one of the two is chosen.

Knows nothing about how a shape is chosen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxtyping import Bool
from torch import Tensor, nn

from loraprune.config.pruning import LoRAPruneConfig
from loraprune.plan import Plan
from loraprune.pruning.target import Target
from loraprune.runtime.processes import from_first
from loraprune.scoring import make_scorer
from loraprune.scoring.average import RunningScores
from loraprune.scoring.criteria import criteria


class QueryUnits:
    """The scores of all query heads of an unpruned model whose units are key-value heads."""

    def __init__(self, model: nn.Module, target: Target, config: LoRAPruneConfig) -> None:
        """Begin to score; `target` is the one with query heads as units."""
        self.target = target
        groups = tuple(group for group in target.groups if group.kind == "query")
        self.plan = Plan.full(groups)
        self.scores = RunningScores(self.plan.units, decay=config.decay)
        self.scorer = make_scorer(
            criteria.get(config.chosen_criterion), model, groups, power=config.power, normalize=config.normalize,
            seed=config.seed,
        )  # fmt: skip

    def score(self, finite: Bool[Tensor, ""]) -> Bool[Tensor, ""]:
        """Add the scores of this step to the average, if all are finite; see `RunningScores.update`."""
        return self.scores.update(self.scorer.collect(), self.plan, finite=finite)

    def ranked(self) -> dict[str, list[int]]:
        """Return the query heads of every group, best first; all processes rank by the first one's scores."""
        self.scores.load(from_first(self.scores.values))
        return {
            name: self.scores.ranked(name, units, parts=self.plan.parts[name]) for name, units in self.plan.kept.items()
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resumed run needs."""
        return {"scores": dict(self.scores.values), "scorer": self.scorer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of `state_dict()`."""
        self.scores.load(state["scores"])
        self.scorer.load_state_dict(state["scorer"])
