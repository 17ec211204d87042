"""Groups of one kind share a plot, and the labels tell their layers apart, whatever the modules of a family are called."""

from __future__ import annotations

import pytest

from loraprune.families import find_groups
from loraprune.pruning.removed import Units
from loraprune.reporting.layers import CROSS_HEADS, NAMES, layer_labels, rows_by_units
from tests.tiny import EVERY, tiny_config

BOTH = ["encoder 0", "encoder 1", "encoder 2", "decoder 0", "decoder 1"]


def units_of(variant: str, layers: int = 2) -> dict[str, Units]:
    groups = find_groups(tiny_config(variant, layers=layers))
    return {group.name: {"kind": group.kind, "dense": group.units, "kept": 1} for group in groups}


@pytest.mark.parametrize("variant", EVERY)
def test_every_group_of_every_family_has_a_row_of_its_own(variant: str) -> None:
    units = units_of(variant)
    found = rows_by_units(units)
    assert sorted(group for rows in found.values() for group in rows.values()) == sorted(units)
    assert set(found) <= {*NAMES.values(), CROSS_HEADS}
    kinds = {name: {units[group]["kind"] for group in rows.values()} for name, rows in found.items()}
    assert all(len(each) == 1 for each in kinds.values())


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ("llama", {"heads": list("012"), "FFN channels": list("012")}),
        ("bert", {"heads": list("012"), "FFN channels": list("012")}),
        ("opt", {"heads": list("012"), "FFN channels": list("012")}),
        ("t5", {"heads": ["encoder", "decoder"], CROSS_HEADS: list("01"), "FFN channels": BOTH}),
        ("bart", {"heads": BOTH, "FFN channels": BOTH, CROSS_HEADS: list("01")}),
    ],
)  # fmt: skip
def test_one_chart_for_each_kind_and_one_row_for_each_layer(variant: str, expected: dict[str, list[str]]) -> None:
    assert {name: list(rows) for name, rows in rows_by_units(units_of(variant, layers=3)).items()} == expected


def test_layers_are_in_ascending_order_whatever_the_order_of_the_groups() -> None:
    order = [4, 5, 0, 11, 1, 10]
    labels = layer_labels([f"bert.encoder.layer.{number}" for number in order])
    assert list(labels.values()) == ["0", "1", "4", "5", "10", "11"]
    assert list(labels.values()) != sorted(labels.values())  # as words 10 would come before 4


def test_a_group_without_a_number_is_named_by_its_own_words() -> None:
    labels = layer_labels(["resnet.embedder", "resnet.encoder.stages.0.layers.1.layer.0", "resnet.encoder.stages.0"])
    assert list(labels.values()) == ["embedder", "0.1.0", "0"]


def test_a_report_without_kinds_falls_back_on_the_last_word_of_the_path() -> None:
    """The number of a layer is never taken for a kind; only the names are worse than with kinds."""
    old: dict[str, Units] = {name: {"dense": 4, "kept": 2} for name in units_of("bert")}
    found = rows_by_units(old)
    assert list(found) == ["units of attention", "units of layer"] != list(rows_by_units(units_of("bert")))
    assert [list(rows) for rows in found.values()] == [["0", "1"], ["0", "1"]]
