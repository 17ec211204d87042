"""Single query heads as units: every key-value head keeps the same number of them, so that a stock checkpoint holds the result.

Knows nothing about torch or weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction

from loraprune.groups import Group, Span

REPEATS = "num_key_value_groups"
"""attribute of transformers' attention layers: how often the forward pass repeats a key-value head"""


def query_heads(group: Group) -> int:
    """Return the query heads of each unit; 0 where the family does not say which rows they own, and outside attention."""
    return max((span.heads for span in group.spans), default=0)


def by_query_heads(group: Group) -> Group:
    """Return an attention group with one unit for each query head: unit k * n + j is query head j of the n of key-value head k.

    The rows of keys and values belong to no unit and stay.
    """
    each = query_heads(group)
    spans = tuple(replace(span, width=span.width // span.heads, heads=1) for span in group.spans if span.heads)
    attributes = {path: 1 for path, value in group.attributes.items() if path.endswith(".num_attention_heads")}
    return replace(
        group, kind="query", units=each * group.units, spans=spans,
        sizes={key: 1 for key in group.sizes if key == "num_attention_heads"},
        attributes={**attributes, _repeats(group): Fraction(1, group.units)}, fixed={}, parts=group.units, least=group.units,
    )  # fmt: skip


def with_query_heads(group: Group, heads: int) -> Group:
    """Return an attention group whose key-value heads have only `heads` query heads each, the offsets of fused spans moved up."""

    def narrower(span: Span) -> Span:
        return replace(span, width=span.width // span.heads * heads, heads=heads) if span.heads else span

    def before(span: Span) -> int:
        earlier = (o for o in group.spans if (o.module, o.side) == (span.module, span.side) and o.offset < span.offset)
        return group.units * sum(other.width - narrower(other).width for other in earlier)

    def counted(values: Mapping[str, int | Fraction]) -> dict[str, int | Fraction]:
        return {key: heads if key.endswith("num_attention_heads") else value for key, value in values.items()}

    return replace(
        group, spans=tuple(replace(narrower(s), offset=s.offset - before(s)) for s in group.spans), whole=False,
        sizes=counted(group.sizes), attributes=counted(group.attributes), fixed={**group.fixed, _repeats(group): heads},
    )  # fmt: skip


def query_heads_left(group: Group, units: int) -> int | None:
    """Return how many query heads each key-value head has once `units` units stay; None where the stock configuration says it."""
    return units // group.parts if group.kind == "query" else group.fixed.get(_repeats(group))


def as_asked(groups: Sequence[Group], kinds: str, *, depth: bool) -> tuple[Group, ...]:
    """Return the groups with query heads as units where `kinds` (as in --kinds) names them, or where all layers have one key-value head.

    Whole layers go with their key-value heads, so `depth` keeps those as units.
    """
    single = all(group.units == 1 for group in groups if query_heads(group) > 1)
    if "query" not in map(str.strip, kinds.split(",")) and (depth or not single or kinds not in ("auto", "all")):
        return tuple(groups)
    return tuple(by_query_heads(group) if query_heads(group) > 1 else group for group in groups)


def as_planned(groups: Sequence[Group], parts: Mapping[str, int]) -> tuple[Group, ...]:
    """Return the groups with the units that a plan counts: query heads in those of which its `parts` say so."""
    return tuple(by_query_heads(group) if group.name in parts else group for group in groups)


def _repeats(group: Group) -> str:
    return f"{group.name}.{REPEATS}"
