"""Trace of a model: the outputs of every reading projection for some rows, which recovery aims at.

Projections that several layers share, and streams that change their shape, are refused: their tokens cannot be followed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from loraprune.errors import ConfigError
from loraprune.groups import Group, Stream, consumers
from loraprune.models.adapters import find_module
from loraprune.pruning.recovery.rows import Rows, on_device, present_tokens, run
from loraprune.runtime.progress import shown
from loraprune.runtime.spool import Spool

ROWS_AT_A_TIME = 8
"""rows that are traced in one pass"""
SHARED = "--compensate, --local: {!r} is used by several layers, which would need separate weights: leave them out"
CHANGING = (
    "--compensate, --local: the residual stream of this model changes its shape at {!r}, so that its tokens cannot be followed: leave "
    "them out"
)


class Trace:
    """Outputs of every reading projection for some rows: as large as a model's activations, so most of them in files."""

    def __init__(self, model: nn.Module, groups: Sequence[Group], rows: Rows) -> None:
        rows = on_device(model, rows)
        self.present = present_tokens(rows)
        streams = {span.module: group.stream for group in groups for span in consumers(group)}
        count = len(next(iter(rows.values())))
        found = _Outputs(streams, rows)
        for start in shown(range(0, count, ROWS_AT_A_TIME), "reading the dense model's outputs"):
            found.read(model, {name: values[start : start + ROWS_AT_A_TIME] for name, values in rows.items()})
        self.outputs: Mapping[str, Float[Tensor, "tokens hidden"]] = found.outputs
        shapes: dict[Stream, torch.Size] = {}
        for path, outputs in self.outputs.items():
            if shapes.setdefault(streams[path], outputs.shape) != outputs.shape:
                raise ConfigError(CHANGING.format(path))
        self.tokens: dict[Stream, int] = {streams[path]: len(given) for path, given in self.outputs.items()}


class _Outputs:
    """The outputs of projections for the tokens of their streams, written as they come: never those of all layers in memory."""

    def __init__(self, streams: Mapping[str, Stream], rows: Rows) -> None:
        self.outputs, self._streams = Spool(), streams
        self._rows, self._present = len(next(iter(rows.values()))), present_tokens(rows)

    def read(self, model: nn.Module, rows: Rows) -> None:
        """Run some rows, the next ones, through a model."""
        present, seen = present_tokens(rows), set[str]()
        count = len(next(iter(rows.values())))

        def keeper(path: str) -> Callable[[nn.Module, Any, Tensor], None]:
            def keep(_: nn.Module, __: Any, output: Tensor) -> None:
                if path in seen:
                    raise ConfigError(SHARED.format(path))
                seen.add(path)
                self._write(path, output.flatten(0, -2)[present[self._streams[path]]], count)

            return keep

        run(model, rows, [find_module(model, path).register_forward_hook(keeper(path)) for path in self._streams])

    def _write(self, path: str, part: Float[Tensor, "some hidden"], rows: int) -> None:
        marked = self._present[self._streams[path]]
        tokens = int(marked.sum()) if isinstance(marked, Tensor) else len(part) * self._rows // rows
        self.outputs.add(path, part, of=tokens)
