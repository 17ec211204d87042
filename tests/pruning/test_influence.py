"""The layer that goes first is the one without which the outputs change least, among those with little influence on their input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import PeftModel

from loraprune.config.pruning import LoRAPruneConfig
from loraprune.errors import ConfigError, PlanError
from loraprune.families import find_groups
from loraprune.families.depth import gone_layers
from loraprune.groups import layer_of
from loraprune.models.adapters import base_layer, find_module
from loraprune.plan import Plan
from loraprune.pruning import influence
from loraprune.pruning.influence import block_influence, layer_order
from loraprune.pruning.masking import Masks
from loraprune.pruning.pruner import Pruner
from loraprune.pruning.recovery.end_to_end import Outputs
from tests.tiny import logits, relative, tiny_model, tokens, with_lora

LAYERS = 4
IDS = tokens(32, 16, seed=3)
ROWS = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "labels": IDS}
READERS = ("self_attn.o_proj", "mlp.down_proj")


def path(layer: int) -> str:
    return f"model.layers.{layer}"


def readers(model: PeftModel, layer: int, *names: str) -> list[torch.Tensor]:
    """Return what a layer's reading projections add with: the weights, and LoRA's B."""
    modules: list[Any] = [find_module(model, f"{path(layer)}.{name}") for name in names or READERS]
    return [part for module in modules for part in (base_layer(module).weight, module.lora_B["default"].weight)]


@torch.no_grad()
def scaled(factors: dict[int, float], *names: str) -> PeftModel:
    """Return a model of four layers, of which some contribute more or less; a layer of factor 0 is the identity."""
    model = with_lora(tiny_model("llama", layers=LAYERS))
    for layer, factor in factors.items():
        for tensor in readers(model, layer, *names):
            tensor.mul_(factor)
    return model


def distances(model: PeftModel) -> dict[str, float]:
    """Return how far the outputs are without each layer."""
    groups = find_groups(model.get_base_model().config)
    outputs, full = Outputs(model, groups, ROWS), Plan.full(groups).kept
    masks, found = Masks(model, groups), {}
    for layer in map(path, range(LAYERS)):
        masks.set({g.name: () if layer_of(g) == layer else full[g.name] for g in groups})
        found[layer] = outputs.distance(model).error
    masks.remove()
    return found


def ordered(model: PeftModel, most: int = 1) -> list[str]:
    groups = find_groups(model.get_base_model().config)
    return layer_order(model, groups, Outputs(model, groups, ROWS), most)


@pytest.mark.parametrize("layer", [0, 2])
def test_a_layer_that_does_nothing_goes_first_and_any_other_one_would_change_more(layer: int) -> None:
    model = scaled({layer: 0.0})
    before = logits(model, IDS)
    found = block_influence(model, find_groups(model.get_base_model().config), ROWS)
    assert found[path(layer)] == pytest.approx(0, abs=1e-6)
    assert min(value for name, value in found.items() if name != path(layer)) > 1e-3
    assert ordered(model) == [path(layer)]
    without = distances(model)
    assert without[path(layer)] < 1e-5 < 1e-2 < min(value for name, value in without.items() if name != path(layer))
    assert torch.equal(logits(model, IDS), before)


def test_the_outputs_decide_within_the_short_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layer 1 moves the hidden states less than layer 2, but along the one channel that the final norm enlarges."""
    model = scaled({1: 2.0})
    norm = find_module(model, "model.norm").weight
    assert isinstance(norm, torch.Tensor)
    norm.data[0] = 40.0
    for place, channels in ((1, slice(1, None)), (2, slice(0, 1)), (3, slice(0, 1))):
        for tensor in readers(model, place):
            tensor.data[channels] = 0.0  # B and the weight have the channels that they write as rows
    found = block_influence(model, find_groups(model.get_base_model().config), ROWS)
    without = distances(model)
    assert found[path(1)] < found[path(2)]
    assert without[path(1)] > without[path(2)]
    chosen = ordered(model)
    assert without[chosen[0]] == min(without.values())
    monkeypatch.setattr(influence, "SHORT", 1)
    assert ordered(model) == [min(found, key=lambda layer: found[layer])] != chosen  # the control: influence alone


def test_padding_has_no_influence() -> None:
    found = []
    for filler in (3, 77):
        mask = torch.ones_like(IDS)
        mask[:, 10:] = 0
        inputs = {"input_ids": torch.where(mask.bool(), IDS, filler), "attention_mask": mask}
        model = scaled({})
        found.append(block_influence(model, find_groups(model.get_base_model().config), inputs))
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    whole = block_influence(model, find_groups(model.get_base_model().config), {"input_ids": inputs["input_ids"]})
    assert whole != pytest.approx(found[1], rel=1e-3)  # the control: where it counts, it shows


def pruned(model: PeftModel, **options: Any) -> Pruner:
    """Prune a model by the default allocation, without reconstruction end to end."""
    pruner = Pruner(model, LoRAPruneConfig(criterion="magnitude", round=1, end_to_end=0, **options))
    pruner.score()
    pruner.remove(1.0, rows=ROWS)
    return pruner


def test_with_depth_a_layer_that_does_nothing_goes_and_the_ratio_is_met() -> None:
    pruner = pruned(scaled({2: 0.0}), ratio=0.3, depth=True)
    assert gone_layers(pruner.counts()) == (path(2),)
    assert pruner.ratio() == pytest.approx(0.3, abs=pruner.space.half_step())
    assert not gone_layers(pruned(scaled({2: 0.0}), ratio=0.3).counts())  # the control: without the option


def test_no_layer_goes_where_channels_cost_less() -> None:
    useless = dict.fromkeys(range(LAYERS), 1e-4)
    assert not gone_layers(pruned(scaled(useless, "mlp.down_proj"), ratio=0.3, depth=True).counts())


def test_a_number_of_layers_is_kept_with_all_of_their_units_or_with_the_widths_asked_for() -> None:
    pruner = pruned(scaled({2: 0.0, 1: 0.05}), layers=2)
    assert set(gone_layers(pruner.counts())) == {path(1), path(2)}
    left = {g.name: g.units for g in pruner.groups if layer_of(g) in (path(0), path(3))}
    assert {name: count for name, count in pruner.counts().items() if count} == left
    both = pruned(scaled({2: 0.0}), layers=3, ffn=32)
    assert gone_layers(both.counts()) == (path(2),)
    assert {g.kind: both.counts()[g.name] for g in both.groups if layer_of(g) == path(0)}["ffn"] == 32


def test_without_a_layer_that_does_nothing_the_outputs_stay() -> None:
    dense = logits(scaled({2: 0.0}), IDS)
    assert relative(dense, logits(pruned(scaled({2: 0.0}), layers=3, compensate=False).model, IDS)) < 1e-5
    assert (
        relative(dense, logits(pruned(scaled({2: 0.0}), layers=2, compensate=False).model, IDS)) > 0.05
    )  # the control


def test_what_was_decided_survives_in_the_state() -> None:
    options = {"layers": 3, "compensate": True}
    first = pruned(scaled({2: 0.2}), **options)
    again = Pruner(scaled({2: 0.2}), LoRAPruneConfig(criterion="magnitude", round=1, end_to_end=0, **options))
    again.load_state_dict(first.state_dict())
    assert again.plan == first.plan
    assert again.is_done
    assert torch.equal(logits(again.model, IDS), logits(first.model, IDS))


def test_wrong_numbers_of_layers_are_refused() -> None:
    with pytest.raises(ConfigError, match="layers=0: at least 1"):
        LoRAPruneConfig(layers=0)
    with pytest.raises(
        ConfigError, match="layers=3 schedule='cubic': the layers are chosen once; use schedule='oneshot'"
    ):
        LoRAPruneConfig(layers=3, schedule="cubic")
    with pytest.raises(ConfigError, match="depth=True: give allocation='measured' or balanced"):
        LoRAPruneConfig(layers=3, depth=True)
    with pytest.raises(PlanError, match="--layers 5: this model has 4 layers; choose 1 to 4"):
        Pruner(scaled({}), LoRAPruneConfig(layers=5))
    with pytest.raises(ConfigError, match="--layers 1: layers of a 'gpt2' model are not known to be interchangeable"):
        Pruner(with_lora(tiny_model("gpt2")), LoRAPruneConfig(layers=1))
