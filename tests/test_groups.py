"""Spans: which entries stay, and where fused spans lie after a cut."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from loraprune.groups import Group, Span, kept_entries, sides


def fused(units: int, shared: int, head: int) -> Group:
    """Return an attention group with one q|k|v projection."""
    queries, keys = units * shared * head, units * head
    return Group(
        "attn",
        "attention",
        units,
        (
            Span("qkv", "out", shared * head),
            Span("qkv", "out", head, queries),
            Span("qkv", "out", head, queries + keys),
            Span("o", "in", shared * head),
        ),
    )


def test_the_entries_of_dropped_units_go_and_all_others_stay() -> None:
    spans = [Span("m", "out", 2, 1), Span("m", "out", 1, 7)]
    # entry 0 belongs to nobody, 1-6 to three units in pairs, 7-9 to the same units one each, 10 to nobody
    assert kept_entries(11, spans, 3, [0, 2]).tolist() == [0, 1, 2, 5, 6, 7, 9, 10]
    assert kept_entries(11, spans, 3, [0, 1, 2]).tolist() == list(range(11))


@given(st.integers(1, 6), st.integers(1, 3), st.integers(1, 4), st.data())
def test_spans_of_a_resized_fused_projection_point_at_the_entries_that_stayed(
    units: int, shared: int, head: int, data: st.DataObject
) -> None:
    group = fused(units, shared, head)
    kept = sorted(data.draw(st.sets(st.integers(0, units - 1), min_size=1)))
    for (_, _), spans in sides(group).items():
        size = max(span.offset + units * span.width for span in spans)
        stayed = kept_entries(size, spans, units, kept)
        smaller = sides(group.resize(len(kept)))[spans[0].module, spans[0].side]
        for before, after in zip(spans, smaller, strict=True):
            for place, unit in enumerate(kept):
                for entry in range(before.width):
                    old = before.offset + unit * before.width + entry
                    assert stayed[after.offset + place * after.width + entry] == old


def test_resizing_to_the_same_size_changes_nothing() -> None:
    group = fused(4, 2, 8)
    assert group.resize(4) == group
    assert group.resize(3) != group


def test_spans_are_gathered_by_module_and_side() -> None:
    found = sides(fused(4, 2, 8))
    assert {key: len(spans) for key, spans in found.items()} == {("qkv", "out"): 3, ("o", "in"): 1}
