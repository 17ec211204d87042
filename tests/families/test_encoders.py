"""What is special in encoders: layers that share weights, and heads that stock checkpoints cannot lose."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from loraprune.config.pruning import LoRAPruneConfig
from loraprune.errors import ConfigError
from loraprune.families import find_groups, positions
from loraprune.models.adapters import find_module
from loraprune.models.saving import storable_kinds
from loraprune.pruning.recovery.compensation import solve_refits
from loraprune.scoring import make_scorer
from loraprune.scoring.criteria import criteria
from tests.encoders import ENCODERS
from tests.tiny import EVERY, tiny_config, tiny_model, with_lora


def test_albert_has_the_groups_of_the_weights_that_there_are() -> None:
    names = [group.name for group in find_groups(tiny_config("albert", layers=3))]
    layer = "albert.encoder.albert_layer_groups.0.albert_layers.0"
    assert names == [f"{layer}.attention", layer]
    assert (
        len(find_groups(tiny_config("albert-groups", layers=4))) == 8
    )  # two groups of two layers, of which each runs often


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_unit_that_all_layers_read_has_one_gate(accumulate: int) -> None:
    model = with_lora(tiny_model("albert", layers=3)).train()
    groups = find_groups(tiny_config("albert", layers=3))
    batch, group = EVERY["albert"].batch(), find_groups(tiny_config("albert", layers=3))[1]
    config = LoRAPruneConfig(criterion="gate")
    scorer = make_scorer(
        criteria.get("gate"), model, groups, power=config.power, normalize=False, seed=0
    )  # fmt: skip
    for _ in range(accumulate):
        model(**batch).loss.backward()
    found = scorer.collect()[group.name]
    scorer.close()
    gate = torch.ones(4, group.units, requires_grad=True)

    def multiply(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0] * gate[:, None], *args[1:])

    handle = find_module(model, group.spans[-1].module).register_forward_pre_hook(multiply)
    model(**batch).loss.backward()
    handle.remove()
    assert gate.grad is not None
    torch.testing.assert_close(found.float(), gate.grad.square().mean(0), rtol=1e-3, atol=1e-12)


def test_shared_projections_cannot_be_refitted_to_each_layer() -> None:
    model, groups = with_lora(tiny_model("albert", layers=3)), find_groups(tiny_config("albert", layers=3))
    kept, inputs = {group.name: list(range(group.units // 2)) for group in groups}, EVERY["albert"].inputs()
    with pytest.raises(ConfigError, match="used by several layers"):
        solve_refits(model, groups, kept, inputs)
    alone, config = with_lora(tiny_model("bert")), tiny_config("bert")
    kept, inputs = {group.name: list(range(group.units // 2)) for group in find_groups(config)}, EVERY["bert"].inputs()
    assert solve_refits(alone, find_groups(config), kept, inputs)


@pytest.mark.parametrize("variant", ENCODERS)
def test_only_ffns_can_shrink_in_a_stock_checkpoint(variant: str) -> None:
    config = tiny_config(variant)
    assert storable_kinds(config, find_groups(config)) == ("ffn",)


def test_roberta_counts_positions_from_behind_its_padding() -> None:
    config = tiny_config("roberta")
    model = tiny_model("roberta")
    config.pad_token_id = model.config.pad_token_id
    longest = positions(config)
    assert longest == 63
    ids = torch.full((1, 63), 5)
    model(input_ids=ids)
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, 64), 5))
    assert positions(tiny_config("bert")) == 64
