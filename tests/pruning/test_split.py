"""The split between heads and channels that changes the outputs least, measured on calibration rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from loraprune.config.pruning import LoRAPruneConfig
from loraprune.errors import ConfigError
from loraprune.models.adapters import base_layer, find_module
from loraprune.pruning.allocation import splits
from loraprune.pruning.pruner import Pruner
from tests.tiny import tiny_model, tokens, with_lora

IDS = tokens(64, 16, seed=3)
ROWS = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "labels": IDS}
WHAT = {"attention": "self_attn.o_proj", "ffn": "mlp.down_proj"}


def cut(useless: str, **options: Any) -> dict[str, int]:
    """Remove a fifth of a model in which one kind of units hardly contributes; return the fraction of each kind that is gone."""
    model = with_lora(tiny_model("llama"))
    for layer in range(2):
        weight = base_layer(find_module(model, f"model.layers.{layer}.{WHAT[useless]}")).weight
        assert isinstance(weight, torch.Tensor)
        weight.data.mul_(1e-3)
    pruner = Pruner(model, LoRAPruneConfig(ratio=0.3, round=1, criterion="magnitude", end_to_end=0, **options))
    pruner.score()
    pruner.remove(1.0, rows=ROWS)
    gone = {"attention": 0, "ffn": 0}
    for group in pruner.groups:
        gone[group.kind] += group.units - pruner.counts()[group.name]
    return gone


@pytest.mark.parametrize("compensate", [False, True])
def test_the_kind_that_contributes_least_is_removed(compensate: bool) -> None:
    heads, channels = cut("attention", compensate=compensate), cut("ffn", compensate=compensate)
    assert heads["attention"] > channels["attention"]
    assert heads["ffn"] < channels["ffn"]
    # The control: equal ratios do not depend on what contributes.
    assert cut("attention", allocation="uniform") == cut("ffn", allocation="uniform")


def test_weights_are_as_before_when_splits_were_tried() -> None:
    """Only what the removal itself changes differs: nothing of the splits that were tried and not taken is left."""
    models = []
    for allocation in ("measured", "uniform"):
        pruner = Pruner(
            with_lora(tiny_model("llama")),
            LoRAPruneConfig(ratio=0.3, allocation=allocation, criterion="magnitude", end_to_end=0, compensate=True),
        )
        pruner.score()
        if allocation == "measured":
            pruner.measure(ROWS)
        models.append(pruner.model.state_dict())
    assert all(torch.equal(tensor, models[1][name]) for name, tensor in models[0].items())


def test_a_small_ratio_still_removes_something() -> None:
    """Nothing is nearer to the model than nothing removed, which is within half a step where the last step is a short one."""
    options: dict[str, Any] = {"round": 20, "criterion": "magnitude", "end_to_end": 0}  # widths 20 to 80, and 96
    ratio = 0.8 * Pruner(with_lora(tiny_model("llama")), LoRAPruneConfig(**options)).space.half_step()
    pruner = Pruner(with_lora(tiny_model("llama")), LoRAPruneConfig(ratio=ratio, **options))
    full = {group.name: group.units for group in pruner.groups}
    scores = {name: [0.0] * units for name, units in full.items()}
    assert full in [pruner.space.spread(split) for split in splits(pruner.space, ratio, scores)]  # the control
    pruner.score()
    pruner.remove(1.0, rows=ROWS)
    assert pruner.counts() != full


@pytest.mark.parametrize(("ratio", "is_warned"), [(1e-4, True), (0.3, False), (0.0, False)])
def test_a_target_that_rounds_to_nothing_is_warned_of(
    ratio: float, is_warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    Pruner(with_lora(tiny_model("llama")), LoRAPruneConfig(ratio=ratio, criterion="magnitude"))
    assert any("no unit will be removed" in message for message in caplog.messages) is is_warned


def test_a_measured_split_needs_a_single_removal() -> None:
    with pytest.raises(ConfigError, match="allocation='measured' schedule='cubic': the split is measured once"):
        LoRAPruneConfig(allocation="measured", schedule="cubic")
    assert LoRAPruneConfig().chosen_allocation == "measured"
    assert LoRAPruneConfig(schedule="cubic").chosen_allocation == "uniform"
    assert LoRAPruneConfig(heads=4).chosen_allocation == "uniform"


def test_widths_by_hand_are_not_measured_anew() -> None:
    """Also where `measured` is named, as `--recipe best` does."""
    for options, expected in (({"heads": 4}, False), ({"ffn_ratio": 0.5}, False), ({}, True)):
        assert LoRAPruneConfig(allocation="measured", **options).measures_split is expected
