"""Trace of a model: the outputs of every reading projection for some rows, which recovery aims at.

Projections that several layers share, and streams that change their shape, are refused: their tokens cannot be followed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from loraprune.errors import ConfigError
from loraprune.groups import Group, Stream, consumers
from loraprune.models.adapters import find_module
from loraprune.pruning.recovery.rows import Rows, on_device, present_tokens, run
from loraprune.pruning.recovery.spool import Spool
from loraprune.runtime.progress import shown

ROWS_AT_A_TIME = 8
"""rows that are traced in one pass"""
SHARED = "--compensate, --local: {!r} is used by several layers, which would need separate weights: leave them out"
CHANGING = (
    "--compensate, --local: the residual stream of this model changes its shape at {!r}, so that its tokens cannot be followed: leave "
    "them out"
)


class Trace:
    """Outputs of every reading projection for some rows: as large as a model's activations, so in files if that is much."""

    def __init__(self, model: nn.Module, groups: Sequence[Group], rows: Rows) -> None:
        rows = on_device(model, rows)
        self.present = present_tokens(rows)
        streams = {span.module: group.stream for group in groups for span in consumers(group)}
        count, spool = len(next(iter(rows.values()))), None
        starts = range(0, count, ROWS_AT_A_TIME)
        for start in shown(starts, "reading the dense model's outputs"):
            some = {name: values[start : start + ROWS_AT_A_TIME] for name, values in rows.items()}
            given = _outputs(model, streams, some)
            if spool is None:
                spool = Spool(sum(part.nbytes for part in given.values()) * math.ceil(count / ROWS_AT_A_TIME))
            for path, part in given.items():
                spool.add(path, part)
        self.outputs: dict[str, Float[Tensor, "tokens hidden"]] = spool.tensors() if spool else {}
        shapes: dict[Stream, torch.Size] = {}
        for path, outputs in self.outputs.items():
            if shapes.setdefault(streams[path], outputs.shape) != outputs.shape:
                raise ConfigError(CHANGING.format(path))
        self.tokens: dict[Stream, int] = {streams[path]: len(given) for path, given in self.outputs.items()}


def _outputs(model: nn.Module, streams: Mapping[str, Stream], rows: Rows) -> dict[str, Float[Tensor, "tokens hidden"]]:
    """Return the output of each projection for the tokens of its stream."""
    present = present_tokens(rows)
    given: dict[str, list[Tensor]] = {path: [] for path in streams}

    def keeper(path: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda _, __, output: given[path].append(output.flatten(0, -2)[present[streams[path]]].cpu())

    run(model, rows, [find_module(model, path).register_forward_hook(keeper(path)) for path in streams])
    if shared := [path for path, parts in given.items() if len(parts) > 1]:
        raise ConfigError(SHARED.format(shared[0]))
    return {path: parts[0] for path, parts in given.items()}
