"""The interface of both pruning methods: of units (`Pruner`) and of single weights (`Sparsifier`).

A method scores, averages, decides and removes. The loop calls `score` after every backward pass and `remove` where the schedule says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from loraprune.config.pruning import LoRAPruneConfig
from loraprune.config.sparsity import Pattern
from loraprune.families import find_groups
from loraprune.groups import Group
from loraprune.models.adapters import config_of
from loraprune.plan import Plan
from loraprune.pruning.deployment import Deployment
from loraprune.pruning.pruner import Pruner
from loraprune.pruning.recovery.rows import Rows
from loraprune.pruning.removed import Removed
from loraprune.pruning.sparsity.sparsifier import Sparsifier, check_sparsity
from loraprune.pruning.surgery import check_groups
from loraprune.pruning.target import Target, find_target
from loraprune.runtime.resharding import Blocks

Goal: TypeAlias = Target | Pattern
"""the target of a method: the remaining units, or a pattern of zeros"""


@runtime_checkable
class PruningMethod(Protocol):
    """The scores, the plan and the removal of one adapted model."""

    model: nn.Module
    config: LoRAPruneConfig
    dense_config: PreTrainedConfig
    groups: tuple[Group, ...]
    """groups of the dense model that the plan is about"""
    present: tuple[Group, ...]
    """the same groups as the model has them now"""
    plan: Plan
    is_done: bool
    """whether the target is reached"""

    def ratio(self) -> float:
        """Return the fraction that has been removed so far."""

    def counts(self) -> dict[str, int]:
        """Return the units that every group keeps now."""

    def score(self, finite: Bool[Tensor, ""] | None = None) -> Bool[Tensor, ""]:
        """Add the scores of this step to the average; gradients must be gathered, unscaled and unclipped.

        Nothing changes if a score is NaN or infinite, or if `finite` is false: whether losses and gradients are finite.

        Returns:
            Whether neither is so, on the device of the scores: this waits for no device.
        """

    def problem(self) -> str | None:
        """Return which score of the last step is NaN or infinite, in one sentence."""

    def forget(self) -> None:
        """Discard the scores of this step."""

    def listen(self, on: bool) -> None:
        """Gather in the next step what scores need, or not: then it must not be scored."""

    def note(self, step: int) -> None:
        """Keep the scores as they are at a step, if the options ask for it."""

    def remove(
        self,
        progress: float,
        *,
        optimizer: torch.optim.Optimizer | None = None,
        rows: Rows | None = None,
        is_tuned: bool = False,
    ) -> None:
        """Remove the lowest scores until `progress` (0 to 1) of the way to the target; `is_tuned` says whether training follows."""

    def finish(self) -> None:
        """End scoring; remove what was only masked during training."""

    def cut(self, model: nn.Module) -> None:
        """Remove from `model`, which is dense, what was masked or cut while its weights were sharded."""

    def release(self) -> None:
        """Drop the reference to the model."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resumed run needs."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of `state_dict()`."""

    def check_saved(self, folder: Path, dense: nn.Module) -> None:
        """Check the saved files, and mask single weights of the `dense` model like those of the saved one."""

    def removed(self) -> Removed:
        """Return the report's entry about the removal."""

    def unit_scores(self) -> Mapping[str, Float[Tensor, " units"]] | None:
        """Return the last score of every unit; None where single weights were scored."""

    def noted_scores(self) -> Mapping[str, Float[Tensor, " units"]]:
        """Return the scores that `note` kept."""


def find_goal(
    model: nn.Module, config: LoRAPruneConfig, *, dense: PreTrainedModel | None = None, deployment: Deployment | None = None
) -> Goal:  # fmt: skip
    """Return the target of the options for a model, with weights or without; `dense` and `deployment` are as of `find_aim`.

    Raises:
        ConfigError: if this model does not support it.
        PlanError: if the target cannot be reached.
    """
    if config.sparsity:
        return check_sparsity(model, find_groups(config_of(model)), config)
    return find_target(model, config, dense=dense, deployment=deployment)


def make_method(
    model: nn.Module,
    config: LoRAPruneConfig,
    goal: Goal | None = None,
    *,
    folder: Path | None = None,
    blocks: Blocks | None = None,
) -> PruningMethod:
    """Return the method for an adapted model; without a `goal` it is computed here.

    Trained blocks are stored in `folder`; `blocks` are those of a model that will be sharded and cut.
    """
    check_groups(model, find_groups(config_of(model)))
    goal = goal or find_goal(model, config)
    if isinstance(goal, Target):
        return Pruner(model, config, goal, folder=folder, blocks=blocks)
    return Sparsifier(model, config, goal)
