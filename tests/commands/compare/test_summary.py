"""Statistics against numbers worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraprune.commands.compare.summary import (
    COLUMNS,
    COST,
    PENDING,
    QUALITY,
    failures,
    markdown,
    rows,
    spread,
    summarise,
)
from loraprune.pruning.correlation import ranks, spearman


def entry(recipe: str, seed: int, perplexity: float | None, *, seconds: float = 1.0, **labels: str) -> dict[str, Any]:
    job = "finetune" if recipe == "finetune" else "prune"
    known: dict[str, Any] = {
        "recipe": recipe, "labels": labels, "seed": seed, "job": job,
        "key": f"{recipe}{seed}", "baseline": None if job == "finetune" else f"finetune{seed}",
    }  # fmt: skip
    if perplexity is None:
        return known | {"error": "--ratio 0.9: too much"}
    return known | {
        "perplexity": {"dense": 5.0, "pruned": perplexity}, "parameters": {"dense": 100, "pruned": 60},
        "ratio_reached": 0.5, "wall_seconds": seconds, "peak_memory_bytes": 2**20 * (1 + seed),
    }  # fmt: skip


ENTRIES = [
    entry("finetune", 0, math.exp(1.0), run="finetune"), entry("finetune", 1, math.exp(2.0), run="finetune"),
    entry("lora, ratio 0.5", 0, math.exp(2.0), seconds=2.0, criterion="lora", ratio="ratio 0.5"),
    entry("lora, ratio 0.5", 1, math.exp(4.0), seconds=4.0, criterion="lora", ratio="ratio 0.5"),
    entry("gate, ratio 0.5", 0, math.exp(1.5), seconds=1.0, criterion="gate", ratio="ratio 0.5"),
    entry("gate, ratio 0.5", 1, math.exp(3.0), seconds=6.0, criterion="gate", ratio="ratio 0.5"),
    entry("gate, ratio 0.9", 0, None, criterion="gate", ratio="ratio 0.9"),
]  # fmt: skip


def test_spread_is_mean_and_sample_deviation() -> None:
    assert spread([1.0, 2.0, 6.0]) == {"mean": 3.0, "deviation": pytest.approx(math.sqrt(7))}
    assert spread([4.0]) == {"mean": 4.0, "deviation": None}
    assert spread([]) is None


def test_gaps_are_taken_seed_by_seed_from_the_tuned_dense_model() -> None:
    lora = summarise(ENTRIES, None)["lora, ratio 0.5"]
    assert lora["gap"] == {"mean": pytest.approx(1.5), "deviation": pytest.approx(math.sqrt(0.5))}
    assert lora["perplexity"]["mean"] == pytest.approx((math.exp(2) + math.exp(4)) / 2)
    assert (lora["seeds"], lora["failed"], lora["peak_memory_bytes"]) == (2, 0, 2**21)
    assert (lora["reference"], lora["relative_gap"], lora["wall_ratio"]) == (None, None, None)


def test_relative_figures_are_of_the_recipe_that_differs_in_the_reference_alone() -> None:
    recipes = summarise(ENTRIES, "lora")
    gate = recipes["gate, ratio 0.5"]
    assert gate["reference"] == "lora, ratio 0.5"
    assert gate["relative_gap"] == pytest.approx(0.75 / 1.5)
    assert gate["wall_ratio"] == pytest.approx((1 / 2 + 6 / 4) / 2)
    assert (recipes["lora, ratio 0.5"]["relative_gap"], recipes["lora, ratio 0.5"]["wall_ratio"]) == (1.0, 1.0)
    assert recipes["gate, ratio 0.9"]["reference"] is None  # there is no lora at 0.9


def test_a_missing_baseline_leaves_the_gap_open() -> None:
    lora = summarise(ENTRIES[1:], None)["lora, ratio 0.5"]
    assert lora["gap"] == {"mean": pytest.approx(2.0), "deviation": None}
    assert summarise(ENTRIES[2:], None)["lora, ratio 0.5"]["gap"] is None


def test_the_table_has_a_row_a_recipe_and_names_what_failed() -> None:
    pending = ENTRIES[-1] | {"seed": 1, "error": PENDING}
    values = {
        "model": "m",
        "data": "d",
        "recipes": summarise([*ENTRIES, pending], "lora"),
        "recommendations": {},
        "cells": [*ENTRIES, pending],
    }
    table = rows(values)
    assert [row[0] for row in table] == ["dense", *dict.fromkeys(e["recipe"] for e in ENTRIES)]
    assert all(len(row) == len(COLUMNS) for row in table)
    assert table[2][1:6] == ("50.0 %", "60", "30.994 ± 33.382", "2", "1.500 ± 0.707")
    assert table[-1][3:5] == ("-", "0 of 2")
    assert failures(values) == [("gate, ratio 0.9, seed 0", "--ratio 0.9: too much"), ("1 cells", PENDING)]
    text = markdown(values)
    assert "gate, ratio 0.9, seed 0: --ratio 0.9: too much" in text
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1


def test_the_two_narrow_tables_hold_every_column() -> None:
    assert sorted({*QUALITY, *COST}) == list(range(len(COLUMNS)))


def test_ties_share_their_mean_rank() -> None:
    assert ranks([5.0, 1.0, 5.0, 7.0]) == [2.5, 1.0, 2.5, 4.0]


def test_spearman_by_hand() -> None:
    assert spearman([1.0, 2.0, 3.0, 4.0], [10.0, 20.0, 40.0, 30.0]) == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert spearman([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]) is None


@given(st.lists(st.integers(-1000, 1000).map(float), min_size=2, max_size=20, unique=True))
def test_spearman_sees_the_order_alone(values: list[float]) -> None:
    assert spearman(values, [value**3 for value in values]) == pytest.approx(1)
    assert spearman(values, [-value for value in values]) == pytest.approx(-1)


def test_an_accuracy_is_better_when_it_is_higher() -> None:
    cells = [
        {"recipe": f"{name}, ratio 0.5", "labels": {"criterion": name, "ratio": "ratio 0.5"}, "seed": 0, "job": "prune", "key": name,
         "baseline": None, "metric": "accuracy", "accuracy": {"dense": 0.9, "pruned": value}, "wall_seconds": 1.0,
         "parameters": {"dense": 100, "pruned": 60}, "ratio_reached": 0.5, "peak_memory_bytes": 1}
        for name, value in (("lora", 0.85), ("random", 0.7))
    ]  # fmt: skip
    recipes = summarise(cells, "lora")
    assert recipes["random, ratio 0.5"]["accuracy"] == {"mean": 0.7, "deviation": None}
    assert recipes["random, ratio 0.5"]["gap"]["mean"] == pytest.approx(0.2)  # below the dense model, as none was tuned
    assert recipes["random, ratio 0.5"]["relative_gap"] == pytest.approx(4.0)
    table = markdown({"model": "m", "data": "d", "recipes": recipes, "recommendations": {}, "cells": cells})
    assert "| accuracy |" in table
    assert "perplexity |" not in table.splitlines()[2]
