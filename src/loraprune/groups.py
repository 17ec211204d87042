"""Groups and spans, as data: a group is a row of interchangeable units, a span says which rows or columns a unit owns.

Knows nothing about torch: everything here follows from a model's configuration.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Int

Side = Literal[
    "out", "in", "norm", "scale", "table", "layer_norm", "head", "router", "stack", "expert_out", "expert_in"
]
Kind = Literal["attention", "query", "ffn", "channel", "shared_ffn", "expert_ffn", "expert"]
HEADS: tuple[Kind, ...] = ("attention", "query")
"""kinds whose units are heads: key-value heads with their query heads, or single query heads"""
EXPERTS: tuple[Kind, ...] = ("expert_ffn", "expert")
"""kinds whose weights are stacks, which carry no LoRA"""
Stream = Literal["input", "decoder"]
Units: TypeAlias = Sequence[int] | Int[np.ndarray, " units"]
"""indices of units, in ascending order"""
LAYER = re.compile(r"(?:[^.]+\.)*?\d+(?=\.|$)")


@dataclass(frozen=True, slots=True)
class Span:
    """The rows (`out`), columns (`in`), normalised channels (`norm`) or other entries of one module that a group's units own.

    Unit u owns the entries offset + u * width up to offset + (u + 1) * width.
    """

    module: str
    """dotted path in the base model"""
    side: Side
    """rows produced; columns consumed; weights of an RMS norm taken over the whole row of units; or, neither scored nor adapted:
    `table`, what a module keeps for every unit, such as position biases, batch norm's vectors or depthwise kernels; `scale`,
    rows of weights that only multiply what a head is; `layer_norm`, weights of a layer norm that counts only the channels
    left; `head`, columns consumed by a task's own layer; `router`, rows of a router, which chooses among the experts left;
    `stack`, whole experts of a stack of them; `expert_out` and `expert_in`, rows and columns of all experts in a stack"""
    width: int
    """entries a unit"""
    offset: int = 0
    """first entry, for fused projections"""
    heads: int = 0
    """query heads among the entries of a unit; 0 for entries that these share, such as rows of keys"""


@dataclass(frozen=True, slots=True)
class Group:
    """A row of units of which any subset can be removed without changing the model's interface."""

    name: str
    """path of the module that holds the units, such as model.layers.3.self_attn; of a group that spans layers, of their list"""
    kind: Kind
    units: int
    spans: tuple[Span, ...]
    sizes: Mapping[str, int | Fraction] = field(default_factory=dict)
    """config key -> value that one kept unit contributes; dots lead into nested keys and lists, as in hidden_sizes.0.
    Without a key no stock checkpoint holds fewer units."""
    attributes: Mapping[str, int | Fraction] = field(default_factory=dict)
    """dotted path of a module attribute -> value that one kept unit contributes"""
    fixed: Mapping[str, int] = field(default_factory=dict)
    """dotted path of a module attribute -> value that it takes, however many units are kept, once some are gone"""
    residual: bool = True
    """whether what the consuming projections give is added to the residual stream as it is, with no norm between"""
    whole: bool = True
    """whether the units are all that the stock model has: false in a model that was pruned before"""
    least: int = 1
    """units that must stay: experts that a token is sent to, a query head for each key-value head"""
    parts: int = 1
    """equal parts of the units, each of which keeps the same number: the key-value heads that query heads share"""
    stream: Stream = "input"
    """which tokens the residual stream carries: the model's input, or what the decoder of an encoder-decoder has said"""

    def resize(self, units: int) -> Group:
        """Return the group with `units` units left, the offsets of fused spans moved up."""
        removed = self.units - units

        def before(span: Span) -> int:
            earlier = (
                o for o in self.spans if (o.module, o.side) == (span.module, span.side) and o.offset < span.offset
            )
            return removed * sum(other.width for other in earlier)

        return replace(self, units=units, spans=tuple(replace(s, offset=s.offset - before(s)) for s in self.spans))


def kept_entries(size: int, spans: Iterable[Span], units: int, kept: Units) -> Int[np.ndarray, " left"]:
    """Return the entries of a dimension of `size` that stay when only the units in `kept` stay, in ascending order."""
    stays = np.ones(size, dtype=bool)
    dropped = np.ones(units, dtype=bool)
    dropped[np.asarray(kept, dtype=np.int64)] = False
    for span in spans:
        owned = stays[span.offset : span.offset + units * span.width].reshape(units, span.width)
        owned[dropped] = False  # a view
    return np.flatnonzero(stays)


def sides(group: Group) -> dict[tuple[str, Side], tuple[Span, ...]]:
    """Return the spans of a group by module and side: a fused projection has several on one side."""
    found: dict[tuple[str, Side], tuple[Span, ...]] = {}
    for span in group.spans:
        found[span.module, span.side] = (*found.get((span.module, span.side), ()), span)
    return found


def attribute_values(group: Group, units: int) -> dict[str, int]:
    """Return the values of module attributes, by dotted path, when `units` units of a group are kept."""
    return {path: int(each * units) for path, each in group.attributes.items()} | dict(group.fixed)


def layer_of(group: Group) -> str | None:
    """Return the path of the layer that holds a group, such as model.layers.3; None if it spans layers."""
    return layer_path(group.name)


def layer_path(name: str) -> str | None:
    """Return the path of the layer that a module, group or tensor of this name is in; None if it is in none."""
    found = LAYER.match(name)
    return found[0] if found else None


def consumers(group: Group) -> tuple[Span, ...]:
    """Return the spans of the projections that read the outputs of a group's units."""
    return tuple(span for span in group.spans if span.side == "in")


def readers(group: Group) -> tuple[Span, ...]:
    """Return the spans of all layers that read the outputs of a group's units, the head of a task included."""
    return tuple(span for span in group.spans if span.side in ("in", "head"))
