"""Which query heads go: the lowest of every key-value head, as many of one as of another, and only where they are asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from loraprune import LoRAPruneConfig
from loraprune.commands.inspect import inspect
from loraprune.commands.plan import dry_run
from loraprune.config.commands import InspectConfig, PlanConfig
from loraprune.errors import ConfigError, PlanError
from loraprune.families import find_groups
from loraprune.groups import Group
from loraprune.plan import Plan
from loraprune.pruning.allocation.space import lowest_first
from loraprune.pruning.target import groups_in_play
from loraprune.scoring.average import RunningScores
from tests.tiny import tiny_config


def model_of(folder: Path, variant: str = "llama", *, key_values: int = 2) -> str:
    """Save a tiny model with eight query heads."""
    config = tiny_config(variant)
    config.num_key_value_heads = key_values
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return str(folder)


def in_play(variant: str, *, key_values: int, **options: Any) -> set[tuple[str, int, int]]:
    config = tiny_config(variant)
    config.num_key_value_heads = key_values
    groups = groups_in_play(config, find_groups(config), LoRAPruneConfig(**options))
    return {(group.kind, group.units, group.parts) for group in groups}


@pytest.mark.parametrize(
    ("key_values", "options", "expected"),
    [
        (2, {}, {("attention", 2, 1), ("ffn", 96, 1)}),
        (2, {"kinds": "query,ffn"}, {("query", 8, 2), ("ffn", 96, 1)}),
        (2, {"kinds": "query"}, {("query", 8, 2)}),
        (1, {}, {("query", 8, 1), ("ffn", 96, 1)}),  # key-value heads could not be cut
        (1, {"kinds": "all"}, {("query", 8, 1), ("ffn", 96, 1)}),
        (1, {"kinds": "attention,ffn"}, {("attention", 1, 1), ("ffn", 96, 1)}),
        (1, {"depth": True, "allocation": "balanced"}, {("attention", 1, 1), ("ffn", 96, 1)}),  # layers go as a whole
    ],
)
def test_query_heads_are_units_where_asked_for_or_where_one_key_value_head_is_all(
    key_values: int, options: dict[str, Any], expected: set[tuple[str, int, int]]
) -> None:
    assert in_play("llama", key_values=key_values, **options) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kinds": "attention,query"}, "kinds='attention,query': one run removes .* or query heads"),
        ({"kinds": "query", "depth": True, "allocation": "balanced"}, "use attention instead of query"),
    ],
)
def test_both_kinds_of_heads_or_whole_layers_beside_them_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LoRAPruneConfig(**options)


def test_a_model_without_shared_key_value_heads_has_none() -> None:
    with pytest.raises(ConfigError, match="--kinds query: this model has no 'query'"):
        in_play("llama", key_values=8, kinds="query")


def test_the_best_of_every_key_value_head_are_ranked_before_the_second_best() -> None:
    running = RunningScores({"a": 6}, decay=0.0)
    scores = torch.tensor([9.0, 8.0, 7.0, 1.0, 3.0, 2.0], dtype=torch.float64)
    running.update({"a": scores}, Plan({"a": 6}, {"a": tuple(range(6))}))
    assert running.ranked("a", range(6), parts=2) == [0, 4, 1, 5, 2, 3]
    assert running.ranked("a", range(6)) == [0, 1, 2, 4, 5, 3]  # the control: three of one and none of the other
    assert running.ranked("a", (1, 2, 3, 5), parts=2) == [1, 5, 2, 3]
    group = Group("a", "query", 6, (), parts=2)
    assert lowest_first(group, scores.tolist()) == [7.0, 1.0, 8.0, 2.0, 9.0, 3.0]
    assert lowest_first(Group("a", "ffn", 6, ()), scores.tolist()) == sorted(scores.tolist())


def test_a_plan_of_unequal_numbers_is_refused() -> None:
    good = Plan({"a": 6}, {"a": (0, 5)}, {"a": 2})
    assert Plan.from_json(good.to_json()) == good
    with pytest.raises(PlanError, match=r"keeps \[2, 0\] query heads of its key-value heads"):
        good.keeping({"a": (0, 1)})
    with pytest.raises(PlanError, match=r"keeps \[1, 0\]"):
        Plan.from_json(good.to_json().replace("5", "").replace("0,", "0"))
    with pytest.raises(PlanError, match="6 units are not equally many in 4 parts"):
        Plan({"a": 6}, {"a": (0, 5)}, {"a": 4})
    Plan({"a": 6}, {"a": (0, 1)})  # the control: of other units


def test_exact_counts_are_query_heads_of_every_key_value_head(tmp_path: Path) -> None:
    model = model_of(tmp_path)
    values = dry_run(PlanConfig(model=model, heads=6, kinds="query,ffn")).values
    assert values["shapes"] == {"num_attention_heads": 6, "intermediate_size": 96}
    assert values["saved_as"] == "mistral"
    assert values["kinds"] == ["query", "ffn"]
    with pytest.raises(PlanError, match=r"--heads 5: .* multiples of 2 up to 8 \(every key-value head keeps the same"):
        dry_run(PlanConfig(model=model, heads=5, kinds="query"))
    with pytest.raises(PlanError, match=r"multiples of 4 up to 8.*--kinds query,ffn removes single ones"):
        dry_run(PlanConfig(model=model, heads=6))


@pytest.mark.parametrize("allocation", ["uniform", "balanced", "global", "paper"])
def test_every_allocation_keeps_as_many_of_each(allocation: Any, tmp_path: Path) -> None:
    values = dry_run(PlanConfig(model=model_of(tmp_path), ratio=0.4, kinds="query,ffn", allocation=allocation)).values
    assert values["ratio_reached"] == pytest.approx(0.4, abs=0.06)
    heads = values["shapes"]["num_attention_heads"]
    assert all(count % 2 == 0 for count in (heads if isinstance(heads, list) else [heads]))
    assert values["memory_bytes"]["pruned"]["total"] < values["memory_bytes"]["dense"]["total"]


def test_inspect_shows_them_beside_key_value_heads(tmp_path: Path) -> None:
    values = inspect(InspectConfig(model=model_of(tmp_path))).values
    kinds = {kind["kind"]: kind for kind in values["kinds"]}
    assert (kinds["attention"]["units"], kinds["query"]["units"]) == (2, 8)
    assert kinds["query"]["parameters_a_unit"] == 2 * 64 * 8
    assert kinds["query"]["stock"]
    assert (kinds["query"]["instead_of"], "instead_of" in kinds["attention"]) == ("attention", False)
    assert kinds["query"]["spans"] == ["q_proj out x8", "o_proj in x8"]
    assert "[4, 8] query heads (with all key-value heads [2, 4, 6, 8])" in values["formats"]["stock"]
    assert values["prunable"] == kinds["attention"]["parameters"] + kinds["ffn"]["parameters"]
