"""Leaving: which configuration holds which widths, and an output folder that appears whole or not at all."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from loraprune.errors import CheckpointError
from loraprune.families import find_groups
from loraprune.models.loading import from_pretrained
from loraprune.models.saving import (
    cast_weights_,
    config_sizes,
    layer_sizes,
    round_weights_,
    save_model,
    stock_config,
    stock_for,
    storable_counts,
)
from loraprune.plan import Plan
from loraprune.pruning.surgery import slice_
from loraprune.runtime.output import output_problem
from loraprune.runtime.workspace import new_folder
from tests.samples import tiny_llama
from tests.tiny import uneven_plan, uniform_plan


def test_equal_counts_have_config_keys_and_unequal_ones_do_not() -> None:
    model = tiny_llama()
    groups = find_groups(model.config)
    equal = {group.name: 1 if group.kind == "attention" else 24 for group in groups}
    assert config_sizes(groups, equal) == {"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 24}
    unequal = equal | {"model.layers.1.mlp": 8}
    assert config_sizes(groups, unequal) is None
    assert layer_sizes(groups, unequal)["intermediate_size"] == [24, 8]
    assert not storable_counts(model.config, groups)(unequal)


def test_heads_that_llama_refuses_are_stored_as_another_type_and_impossible_ones_are_not() -> None:
    model = tiny_llama(num_attention_heads=8, num_key_value_heads=8)
    odd = stock_config(model.config, {"num_attention_heads": 3, "num_key_value_heads": 3, "intermediate_size": 64})
    assert odd is not None
    assert odd.model_type == "mistral"
    groups = find_groups(model.config)
    storable = storable_counts(model.config, groups)
    counts = {group.name: 4 if group.kind == "attention" else group.units for group in groups}
    assert storable(counts)
    assert storable(counts)  # the second answer is remembered


def test_unequal_widths_have_no_stock_configuration() -> None:
    config = tiny_llama().config
    groups = find_groups(config)
    uneven, equal = (
        {name: len(kept) for name, kept in plan.kept.items()}
        for plan in (uneven_plan(groups), uniform_plan(groups, 1, 24))
    )
    assert stock_for(config, groups, uneven) is None
    stock = stock_for(config, groups, equal)
    assert stock is not None
    assert (stock.model_type, stock.to_dict()["intermediate_size"]) == ("llama", 24)  # the control


def test_rounded_weights_are_what_the_file_will_hold() -> None:
    model = torch.nn.Linear(8, 8)
    before = model.weight.detach().clone()
    round_weights_(model, torch.bfloat16)
    assert torch.equal(model.weight, before.bfloat16().float())
    assert not torch.equal(model.weight, before)


@pytest.mark.parametrize("plan_of", [uniform_plan, uneven_plan])
def test_a_stock_class_holds_equal_widths_and_code_of_its_own_others(
    plan_of: Callable[..., Plan], tmp_path: Path
) -> None:
    model = tiny_llama()
    dense, groups = copy.deepcopy(model.config), find_groups(model.config)
    plan = plan_of(groups, 1, 24) if plan_of is uniform_plan else plan_of(groups)
    slice_(model, groups, plan.kept)
    cast_weights_(model, torch.bfloat16)
    counts = {name: len(kept) for name, kept in plan.kept.items()}
    save_model(model, tmp_path, config=dense, groups=groups, counts=counts)
    stock = plan_of is uniform_plan
    assert (json.loads((tmp_path / "config.json").read_text())["model_type"] == "llama") is stock
    assert bool(list(tmp_path.glob("*.py"))) is not stock
    loaded = from_pretrained(tmp_path)
    assert loaded.dtype == torch.bfloat16
    ids = torch.arange(6)[None]
    assert torch.equal(loaded(ids).logits, model(ids).logits)


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("", "empty"), ("taken", "exists"), ("file/out", "Not a directory"), ("x" * 300, "too long"), ("a\0b", "null"),
    ],
)  # fmt: skip
def test_an_output_that_cannot_be_written_is_known_beforehand(
    output: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "file").touch()
    problem = output_problem(output, overwrite=False)
    assert problem is not None
    assert words in problem
    assert problem.startswith("--output")
    assert output_problem("new/folder", overwrite=False) is None
    assert output_problem("taken", overwrite=True) is None  # it is empty
    if output:
        with pytest.raises(CheckpointError, match="--output"), new_folder(tmp_path / output, overwrite=False):
            pass


def test_a_block_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def write() -> None:
        with new_folder(tmp_path / "out", overwrite=False) as folder:
            (folder / "part").touch()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write()
    assert list(tmp_path.iterdir()) == []
