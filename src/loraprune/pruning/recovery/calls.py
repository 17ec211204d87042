"""The call of a block, repeated for some of its rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxtyping import Int
from torch import Tensor, nn


class Calls:
    """The call of a block that is about to happen, by rows."""

    def __init__(
        self,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        places: Int[Tensor, "rows seq"],
        batch: int,
    ) -> None:
        self.module, self.args, self.kwargs, self.places, self.batch = module, args, kwargs, places, batch

    def run(self, chosen: Int[Tensor, " some"]) -> None:
        """Run the block on some rows."""
        device = next(self.module.parameters()).device
        picked, rows = chosen.to(device), len(self.places)
        self.module.forward(*_pick(self.args, picked, rows), **_pick(self.kwargs, picked, rows))


def _pick(value: Any, chosen: Tensor, rows: int) -> Any:
    """Return some rows of every tensor that has one entry for each row."""
    if isinstance(value, Tensor):
        return value[chosen] if value.ndim > 1 and len(value) == rows else value
    if isinstance(value, Mapping):
        return {name: _pick(each, chosen, rows) for name, each in value.items()}
    return tuple(_pick(each, chosen, rows) for each in value) if isinstance(value, tuple) else value
