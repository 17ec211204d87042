"""Which kinds of units may go: what a stock checkpoint can hold by default, others on request."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn
from transformers import GPT2ForSequenceClassification, GPT2LMHeadModel

import loraprune
from loraprune import LoRAPruneConfig
from loraprune.commands.inspect import inspect
from loraprune.commands.plan import dry_run
from loraprune.config.commands import InspectConfig, PlanConfig
from loraprune.errors import ConfigError, PlanError, UnsupportedModelError
from loraprune.families import find_groups
from loraprune.models.saving import save_model
from loraprune.pruning.pruner import Pruner
from loraprune.pruning.surgery import slice_
from loraprune.pruning.target import groups_in_play
from tests.tiny import logits, tiny_config, tiny_model, tokens, uneven_plan, with_lora


def kinds(variant: str, **options: object) -> list[str]:
    groups = groups_in_play(tiny_config(variant), find_groups(tiny_config(variant)), LoRAPruneConfig(**options))  # type: ignore[arg-type]
    return sorted({group.kind for group in groups})


@pytest.mark.parametrize(
    ("variant", "options", "expected"),
    [
        ("llama", {}, ["attention", "ffn"]),
        ("gpt2", {}, ["ffn"]),
        ("gpt2", {"kinds": "all"}, ["attention", "ffn"]),
        ("gpt2", {"kinds": "attention"}, ["attention"]),
        ("gpt2", {"kinds": "ffn, attention"}, ["attention", "ffn"]),
        ("gpt2", {"allocation": "global"}, ["attention", "ffn"]),  # needs modelling code anyway
        ("bloom", {}, ["ffn"]),  # no kind can be stated, so none is left out for it
        ("llama", {"kinds": "ffn"}, ["ffn"]),
    ],
)
def test_the_kinds_in_play(variant: str, options: dict[str, object], expected: list[str]) -> None:
    assert kinds(variant, **options) == expected


def test_a_kind_that_the_model_lacks_is_refused_with_those_it_has() -> None:
    with pytest.raises(ConfigError, match=r"kinds='atention': .*did you mean 'attention'.* attention, query, ffn"):
        kinds("gpt2", kinds="atention")


def test_the_ratio_counts_in_the_kinds_in_play(tmp_path: Path) -> None:
    tiny_model("gpt2").save_pretrained(tmp_path)
    found = {name: dry_run(PlanConfig(model=str(tmp_path), ratio=0.5, kinds=name)).values for name in ("auto", "all")}
    for values in found.values():
        assert values["ratio_reached"] == pytest.approx(0.5, abs=0.01)
    assert found["auto"]["shapes"] == {"n_inner": 48}
    assert found["auto"]["saved_as"] == "gpt2"
    assert found["all"]["shapes"] == {"attention units": [4, 4], "n_inner": [48, 48]}
    assert found["all"]["saved_as"] == "loraprune_gpt2"
    assert found["auto"]["parameters"]["prunable_dense"] < found["all"]["parameters"]["prunable_dense"]
    with pytest.raises(PlanError, match=r"--heads 4: .*--kinds all"):
        dry_run(PlanConfig(model=str(tmp_path), heads=4))
    assert dry_run(PlanConfig(model=str(tmp_path), heads=4, kinds="all")).values["shapes"]["attention units"] == [4, 4]


@pytest.mark.parametrize(
    ("variant", "words"),
    [
        ("llama", "[2, 4, 6, 8] query heads"),
        ("gpt2", "any FFN width and all 8 units of kind attention"),
        ("bloom", "no smaller widths"),
    ],
)
def test_inspect_says_which_formats_a_model_can_have(variant: str, words: str, tmp_path: Path) -> None:
    tiny_model(variant).save_pretrained(tmp_path)
    found = inspect(InspectConfig(model=str(tmp_path))).values
    assert words in found["formats"]["stock"]
    assert "trust_remote_code" in found["formats"]["layerwise"]


@pytest.mark.parametrize(
    ("variant", "options", "words"),
    [
        ("gpt2", {}, "attention are not pruned: no stock checkpoint"),
        ("gpt2", {"kinds": "all"}, "will contain modelling code"),
        ("gpt2", {"kinds": "ffn"}, ""),
        ("llama", {}, ""),
    ],
)
def test_a_run_says_what_stays_whole_and_what_needs_code(
    variant: str, options: dict[str, str], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="loraprune.pruning.target"):
        Pruner(with_lora(tiny_model(variant)), LoRAPruneConfig(**options))  # type: ignore[arg-type]
    assert (words in caplog.text) if words else not caplog.text


def test_one_record_serves_every_head_of_a_model(tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    assert isinstance(model, GPT2LMHeadModel)
    config, groups = model.config, find_groups(model.config)
    plan = uneven_plan(groups)
    dense = tiny_config("gpt2")
    slice_(model, groups, plan.kept)
    counts = {name: len(kept) for name, kept in plan.kept.items()}
    save_model(model, tmp_path, config=dense, groups=groups, counts=counts)
    loraprune.from_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    assert {"AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoModelForSequenceClassification"} <= values[
        "auto_map"
    ].keys()
    other = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=3)
    base = transformers.AutoModel.from_pretrained(tmp_path)
    assert isinstance(other, GPT2ForSequenceClassification)
    hidden = base(input_ids=tokens()).last_hidden_state
    assert torch.equal(hidden, other.transformer(input_ids=tokens()).last_hidden_state)
    assert torch.equal(model.lm_head(hidden), logits(model, tokens()))
    assert config.n_inner == 96


def test_a_module_of_no_family_is_told_how_to_add_one() -> None:
    with pytest.raises(UnsupportedModelError, match=r"Linear is not a PreTrainedModel.*docs/add-a-family\.md"):
        loraprune.attach_lora(nn.Linear(4, 4), LoRAPruneConfig())
    config = transformers.MambaConfig(hidden_size=8, num_hidden_layers=1, vocab_size=16)
    with pytest.raises(UnsupportedModelError, match=r"'mamba'.*docs/add-a-family\.md"):
        loraprune.attach_lora(transformers.MambaForCausalLM(config), LoRAPruneConfig())
