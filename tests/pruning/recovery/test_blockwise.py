"""A block that lost units learns to give what it gave before; the other blocks, adapters and scores stay as they were."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from loraprune.errors import ConfigError, NumericsError
from loraprune.families import find_groups
from loraprune.groups import Group, layer_of
from loraprune.plan import Plan
from loraprune.pruning.pruner import Pruner
from loraprune.pruning.recovery.blockwise import BlockOptions, blocks_of, check_blocks, fit_blocks_, weight_scales
from loraprune.pruning.recovery.finished import Finished
from loraprune.pruning.recovery.trace import Trace
from loraprune.pruning.surgery import slice_
from tests.fitting import config, prune
from tests.tiny import choose, logits, relative, tiny_config, tiny_model, tokens, with_lora

IDS = tokens(160, 12, seed=3)


def rows(mask: Tensor | None = None) -> dict[str, Tensor]:
    return {"input_ids": IDS, "attention_mask": torch.ones_like(IDS) if mask is None else mask}


def halves(groups: Sequence[Group]) -> Plan:
    return choose(groups, {group.name: group.units // 2 for group in groups}, seed=0)


def cut(model: PeftModel, *, steps: int, mask: Tensor | None = None, changed: Sequence[str] | None = None) -> None:
    """Halve all groups, and let blocks learn for `steps` steps."""
    groups = find_groups(model.config)
    scales, trace = weight_scales(model, groups), Trace(model, groups, rows(mask))
    left = slice_(model, groups, halves(groups).kept)
    if steps:
        names = [group.name for group in groups] if changed is None else changed
        fit_blocks_(model, left, names, trace, rows(mask), BlockOptions(scales, steps, 0))


@pytest.mark.parametrize("variant", ["llama", "phi3", "gpt2", "olmo2"])
def test_blocks_that_learned_are_nearer_to_the_dense_model(variant: str) -> None:
    dense = logits(with_lora(tiny_model(variant)), IDS)
    distance = {}
    for steps in (0, 60):
        model = with_lora(tiny_model(variant))
        cut(model, steps=steps)
        distance[steps] = (logits(model, IDS) - dense).norm() / dense.norm()
    assert distance[60] < 0.9 * distance[0]


def test_a_stream_with_padding_is_accounted_token_by_token() -> None:
    """What stands in padded places must not matter: other tokens there give the same weights."""
    mask = torch.ones_like(IDS)
    mask[::2, 8:] = 0
    found = []
    for filler in (0, 5):
        model = with_lora(tiny_model("llama"))
        groups = find_groups(model.config)
        ids = torch.where(mask.bool(), IDS, filler)
        given = {"input_ids": ids, "attention_mask": mask}
        scales, trace = weight_scales(model, groups), Trace(model, groups, given)
        left = slice_(model, groups, halves(groups).kept)
        fit_blocks_(model, left, [group.name for group in groups], trace, given, BlockOptions(scales, 5, 0))
        found.append(logits(model, IDS[:2]))
    assert relative(*found) < 1e-5


def test_only_blocks_with_a_cut_learn_and_nothing_else_changes() -> None:
    model, untouched = with_lora(tiny_model("llama")), with_lora(tiny_model("llama"))
    cut(model, steps=5, changed=["model.layers.1.mlp"])
    cut(untouched, steps=0)
    before, now = untouched.state_dict(), model.state_dict()
    changed = {name for name, tensor in now.items() if not torch.equal(tensor, before[name])}
    assert len(changed) == 3
    assert all("layers.1.mlp" in name and "base_layer.weight" in name for name in changed)
    assert not any(p.requires_grad for name, p in model.named_parameters() if "lora_" not in name)
    assert all(p.grad is None for p in model.parameters())


def test_groups_within_one_another_are_one_block() -> None:
    """BERT's FFN has no module of its own: its layer holds the attention too, so both learn as one."""
    groups = find_groups(tiny_config("bert"))
    found = blocks_of(groups)
    assert [[group.kind for group in members] for members in found.values()] == [["attention", "ffn"]] * (
        len(groups) // 2
    )
    assert all(path.endswith(str(place)) for place, path in enumerate(found))
    llama = blocks_of(find_groups(tiny_model("llama").config))
    assert list(llama)[:2] == ["model.layers.0.self_attn", "model.layers.0.mlp"]


def test_units_that_several_layers_share_have_no_block() -> None:
    groups = find_groups(tiny_config("t5"))
    shared = {group.name for group in groups if layer_of(group) is None}
    blocks = blocks_of(groups)
    assert shared
    assert {group.name for members in blocks.values() for group in members} == {g.name for g in groups} - shared
    check_blocks(groups)


def test_channels_of_convolutions_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"--local: channels of .* are not part of a single block"):
        check_blocks(find_groups(tiny_config("resnet")))


def test_a_block_whose_activations_are_no_numbers_ends_the_run() -> None:
    model = with_lora(tiny_model("llama"))
    groups = find_groups(model.config)
    trace = Trace(model, groups, rows())
    for outputs in trace.outputs.values():
        outputs[0] = torch.nan
    with pytest.raises(NumericsError, match=r"an output is NaN"):
        fit_blocks_(model, groups, [groups[0].name], trace, rows(), BlockOptions(weight_scales(model, groups), 400, 0))


@pytest.mark.parametrize("criterion", ["gate", "gradient", "taylor"])
def test_learning_blocks_add_nothing_to_the_scores(criterion: str) -> None:
    """A criterion that watches forward and backward passes must not see those of a block on its own."""
    found = []
    for local in (0, 5):
        model = with_lora(tiny_model("llama"))
        pruner = Pruner(model, config(criterion=criterion, local=local, seed=1))
        model.train()
        model(input_ids=IDS, labels=IDS).loss.backward()
        if local:
            given, groups = rows(), pruner.present
            trace = Trace(model, groups, given)
            for outputs in trace.outputs.values():
                outputs.mul_(1.5)  # there must be something to learn
            gains = fit_blocks_(
                model, groups, [g.name for g in groups], trace, given, BlockOptions(pruner.scales, 5, 0)
            )
            assert any(gain.kept for gain in gains.values())
        model.train()
        found.append(pruner.scorer.collect())
    assert found[0].keys() == {group.name for group in groups}
    for name, scores in found[0].items():
        assert scores.max() > 0
        assert torch.equal(scores, found[1][name])


@pytest.mark.parametrize(("local_all", "learned"), [(False, {"0.mlp"}), (True, {"0.mlp", "1.self_attn", "1.mlp"})])
def test_blocks_that_lost_nothing_learn_if_asked_to(local_all: bool, learned: set[str]) -> None:
    pruner = Pruner(with_lora(tiny_model("llama")), config(local=5, local_all=local_all))
    kept = dict(pruner.plan.kept) | {"model.layers.0.mlp": pruner.plan.kept["model.layers.0.mlp"][:4]}
    before = {name: tensor.clone() for name, tensor in pruner.model.state_dict().items()}
    pruner.apply(Plan(pruner.plan.units, kept), rows=rows())
    now = pruner.model.state_dict()
    others = {
        name for name, tensor in now.items() if tensor.shape != before[name].shape or (tensor != before[name]).any()
    }
    changed = {name.partition("model.layers.")[2].rpartition("_proj")[0].rpartition(".")[0] for name in others}
    assert changed == learned


def test_shrinking_and_masked_runs_end_with_the_same_model(tmp_path: Path) -> None:
    found = []
    for shrink in (True, False):
        settings = config(local=8, compensate=True, shrink=shrink, criterion="gate")
        model, callback, _ = prune(tmp_path / str(shrink), settings, steps=12)
        assert callback.pruner is not None
        found.append((callback.pruner.plan.kept, logits(model, IDS)))
    assert found[0][0] == found[1][0]
    assert relative(found[0][1], found[1][1]) < 1e-3


def test_learning_enlarges_what_rounding_makes_of_the_adapters() -> None:
    """Adam takes steps of one size however small a gradient is, so that its last bit decides their direction.

    Hence --local in two processes, whose averaged gradients are rounded otherwise than those of one, may choose other units.
    """
    found: dict[int, list[Tensor]] = {0: [], 200: []}
    for steps, given in found.items():
        for rounding in (0.0, 1e-6):
            model, draw = with_lora(tiny_model("llama")), torch.Generator().manual_seed(0)
            for name, weight in model.named_parameters():
                if "lora_" in name:
                    weight.data *= 1 + rounding * torch.randn(weight.shape, generator=draw)
            cut(model, steps=steps)
            given.append(logits(model, IDS))
    apart = {steps: relative(*given) for steps, given in found.items()}
    assert 0 < apart[0] < 1e-5
    assert apart[200] > 10 * apart[0]


def test_a_block_that_learning_makes_worse_gets_its_weights_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that are far too large at this width, as 0.05 of the RMS was at 1,536 inputs with massive activations."""
    found = {}
    for factor in (1, 1e4):
        model = with_lora(tiny_model("llama"))
        groups = find_groups(model.config)
        scales = {path: factor * step for path, step in weight_scales(model, groups).items()}
        trace = Trace(model, groups, rows())
        left = slice_(model, groups, halves(groups).kept)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        gains = fit_blocks_(model, left, [group.name for group in groups], trace, rows(), BlockOptions(scales, 30, 0))
        same = all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        found[factor] = same, [gain.kept for gain in gains.values()]
    assert found[1e4] == (True, [False] * 4)
    assert not found[1][0]  # the control
    assert any(found[1][1])


@pytest.mark.parametrize("width", [64, 1536, 11008])
def test_one_step_moves_the_output_alike_at_every_width(width: int) -> None:
    """Inputs that point the same way are the worst case: all weights of a row move their output in one direction."""
    draw = torch.Generator().manual_seed(0)
    model = with_lora(tiny_model("llama"))
    projection = model.get_base_model().model.layers[0].mlp.down_proj
    weight = torch.randn(32, width, generator=draw) * width**-0.5
    projection.base_layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    step = weight_scales(model, find_groups(model.config))["model.layers.0.mlp.down_proj"]
    aligned = torch.ones(width)
    moved = step * aligned.sum() / (weight @ aligned).square().mean().sqrt()
    assert 0.2 < moved < 0.8  # RATE, whatever the width


def test_blocks_that_are_finished_are_read_and_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for key, steps in (("a", 20), ("a", 1), ("b", 1)):
        model = with_lora(tiny_model("llama"))
        groups = find_groups(model.config)
        scales, trace = weight_scales(model, groups), Trace(model, groups, rows())
        left = slice_(model, groups, halves(groups).kept)
        options = BlockOptions(scales, steps, 0, Finished(tmp_path, key))
        gains = fit_blocks_(model, left, [group.name for group in groups], trace, rows(), options)
        found.append((logits(model, IDS[:2]), gains))
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]
    assert not torch.equal(found[0][0], found[2][0])  # those of another removal are not read
