"""What every scorer is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from loraprune.groups import Group

Kept: TypeAlias = Mapping[str, Sequence[int]]
"""group name -> units"""


@runtime_checkable
class Scorer(Protocol):
    """Gives the scores of the present units after the last backward pass of an optimiser step."""

    def collect(self, kept: Kept | None = None) -> Mapping[str, Float[Tensor, " units"]]:
        """Return group -> unit scores on the CPU, and forget what was gathered for this step.

        Of a masked model, `kept` names the units that are left: only these are scored.
        """

    def forget(self) -> None:
        """Drop what was gathered for this step: it is not to be scored."""

    def resize(self, groups: Sequence[Group]) -> None:
        """Go on with the groups of the smaller model."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs between two steps."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`."""

    def close(self) -> None:
        """Remove all hooks."""
