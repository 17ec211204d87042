"""No step of recovery may do harm: what moves the outputs of the whole model further away is undone and reported."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch

from loraprune.config.pruning import LoRAPruneConfig
from loraprune.errors import ConfigError
from loraprune.families import find_groups
from loraprune.models.adapters import base_layer, find_module
from loraprune.plan import Plan
from loraprune.pruning.pruner import Pruner
from loraprune.pruning.recovery import recover
from loraprune.pruning.recovery.compensation import Gain
from loraprune.pruning.recovery.recover import Recovery
from loraprune.pruning.target import decide_recovery
from tests.fitting import config
from tests.tiny import EVERY, tiny_config, tiny_model, tokens, with_lora

IDS = tokens(64, 16, seed=3)
ROWS = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "labels": IDS}


def halved(pruner: Pruner) -> Plan:
    kept = {name: units[: max(1, len(units) // 2)] for name, units in pruner.plan.kept.items()}
    return Plan(pruner.plan.units, kept)


def test_a_removal_reports_losses_and_gains_in_order() -> None:
    pruner = Pruner(with_lora(tiny_model("llama")), config(compensate=True, local=10))
    pruner.apply(halved(pruner), rows=ROWS)
    (found,) = pruner.recoveries
    assert list(found.losses) == ["before", "removed", "refitted", "blocks"]
    assert found.losses["removed"] >= found.losses["refitted"] >= found.losses["blocks"]
    assert len(found.refits) == len(found.blocks) == 4
    again = Recovery.from_json(found.to_json())
    assert again == found


def test_blocks_that_ruin_the_outputs_of_the_model_are_undone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each block may say that it gained, and the whole be ruined all the same."""

    def ruin(model: Any, *arguments: Any) -> dict[str, Gain]:
        weight = base_layer(find_module(model, "model.layers.0.mlp.down_proj")).weight
        assert isinstance(weight, torch.Tensor)
        weight.data.mul_(-50)
        return {"model.layers.0.mlp": Gain(1.0, 0.1)}

    caplog.set_level(logging.INFO, "loraprune")
    found = []
    for local in (0, 5):
        monkeypatch.setattr(recover, "fit_blocks_", ruin)
        pruner = Pruner(with_lora(tiny_model("llama")), config(compensate=True, local=local))
        pruner.apply(halved(pruner), rows=ROWS)
        found.append({name: tensor.clone() for name, tensor in pruner.model.state_dict().items()})
    assert all(torch.equal(found[0][name], tensor) for name, tensor in found[1].items())
    assert pruner.recoveries[0].undone == ["blocks"]
    assert "further from the dense model's and was undone" in caplog.text


def test_damage_is_reported_in_words_at_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "loraprune")
    recover._report(Recovery({"before": 3.2, "removed": 8.0, "refitted": 3.8}))
    assert caplog.messages == []
    recover._report(Recovery({"before": 3.2, "removed": 8.0, "refitted": 7.5}))
    assert "from 3.20 to 7.50: the perplexity is 73.7 times as high" in caplog.text


def test_reconstruction_is_the_default_wherever_it_is_possible() -> None:
    given = LoRAPruneConfig(ratio=0.5)
    llama, resnet = find_groups(tiny_config("llama")), find_groups(tiny_config("resnet"))
    assert (decide_recovery(llama, given).compensate, decide_recovery(llama, given).end_to_end) == (True, None)
    assert (decide_recovery(resnet, given).compensate, decide_recovery(resnet, given).end_to_end) == (False, None)
    assert decide_recovery(resnet, replace(given, compensate=True)).compensate is True  # refused later
    assert decide_recovery(llama, replace(given, end_to_end=7)).end_to_end == 7


def test_layers_that_share_projections_are_refitted_only_if_asked_to() -> None:
    inputs = EVERY["albert"].inputs()
    for wanted in (None, True):
        pruner = Pruner(
            with_lora(tiny_model("albert", layers=3)), config(compensate=wanted, local=5 if wanted else 0, kinds="ffn")
        )
        if wanted:
            with pytest.raises(ConfigError, match="used by several layers"):
                pruner.apply(halved(pruner), rows=inputs)
        else:
            pruner.apply(halved(pruner), rows=inputs)
            assert pruner.config.compensate is False
            assert pruner.counts() == {name: max(1, units // 2) for name, units in pruner.plan.units.items()}
