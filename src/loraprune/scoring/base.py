"""The interface of all scorers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from loraprune.groups import Group

Kept: TypeAlias = Mapping[str, Sequence[int] | Int[Tensor, " left"]]
"""group name -> units; as tensors on the device of the scores nothing is copied there"""
Scores: TypeAlias = Mapping[str, Float[Tensor, " units"]]
"""group name -> scores of its units, where they were computed"""


@runtime_checkable
class Scorer(Protocol):
    """Computes the scores of the present units after the last backward pass of an optimiser step."""

    def collect(self, kept: Kept | None = None) -> Scores:
        """Return the scores of all groups without waiting for their device, and discard the sums of this step.

        For a masked model, `kept` names the remaining units: only these are scored.
        """

    def forget(self) -> None:
        """Discard the sums of this step without scoring it."""

    def listen(self, on: bool) -> None:
        """Gather in the next forward and backward passes what scores need, or not: then `collect` must not be called."""

    def resize(self, groups: Sequence[Group]) -> None:
        """Use the groups of the smaller model from now on."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resumed run needs between two steps."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of `state_dict()`."""

    def close(self) -> None:
        """Remove all hooks."""


def kept_scores(scores: Scores, kept: Kept | None) -> Mapping[str, Float[Tensor, " left"]]:
    """Return the scores of the units in `kept`, None for all."""
    if kept is None:
        return scores
    return {name: values[torch.as_tensor(kept[name], device=values.device)] for name, values in scores.items()}
