"""Two stacks in one model: heads that all blocks of a stack share, bias tables, and a residual stream for each stack."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING

from loraprune.errors import UnsupportedModelError
from loraprune.families import find_groups, t5
from loraprune.groups import Group, consumers, layer_of
from loraprune.models.adapters import find_module
from loraprune.models.loading import from_pretrained
from loraprune.models.saving import save_model
from loraprune.plan import Plan
from loraprune.pruning.masking import Masks
from loraprune.pruning.recovery.compensation import apply_refits_, solve_refits
from loraprune.pruning.surgery import slice_
from loraprune.scoring import make_scorer
from loraprune.scoring.criteria import criteria
from tests.encoder_decoders import ENCODER_DECODERS, pair_batch
from tests.tiny import choose, output, relative, tiny_config, tiny_model, with_lora

every_encoder_decoder = pytest.mark.parametrize("variant", ENCODER_DECODERS)


def test_a_head_of_t5_is_one_unit_through_its_stack() -> None:
    groups = {group.name: group for group in find_groups(tiny_config("t5", layers=3))}
    shared = groups["encoder.block"]
    assert layer_of(shared) is None
    assert [span.module for span in consumers(shared)] == [
        f"encoder.block.{i}.layer.0.SelfAttention.o" for i in range(3)
    ]
    tables = [span.module for group in groups.values() for span in group.spans if span.side == "table"]
    assert tables == [
        f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias" for stack in ("encoder", "decoder")
    ]
    # Cross-attention has no bias, so its heads are each block's own.
    assert [layer_of(group) for name, group in groups.items() if "EncDec" in name] == [
        "decoder.block.0",
        "decoder.block.1",
    ]


def test_a_bias_table_is_cut_with_the_heads_it_belongs_to() -> None:
    model = tiny_model("t5")
    groups = find_groups(model.config)
    bias = model.get_submodule("encoder.block.0.layer.0.SelfAttention.relative_attention_bias")
    before = bias.weight.detach().clone()
    slice_(model, groups, {"encoder.block": (1, 6)})
    assert torch.equal(bias.weight, before[:, [1, 6]])
    assert bias.embedding_dim == 2


@pytest.mark.parametrize(
    "stays", [{}, {"decoder.block.0.layer.1.EncDecAttention": 8}], ids=["both cut", "the first whole"]
)
def test_cross_attention_may_have_other_heads_in_every_block(stays: dict[str, int]) -> None:
    model = tiny_model("t5")
    groups = find_groups(model.config)
    wanted = {"decoder.block.0.layer.1.EncDecAttention": 2, "decoder.block.1.layer.1.EncDecAttention": 5} | stays
    plan = choose(groups, {group.name: wanted.get(group.name, group.units) for group in groups})
    masks = Masks(model, groups)
    masks.set(plan.kept)
    reference = output(model, "t5")
    masks.remove()
    slice_(model, groups, plan.kept)
    assert relative(reference, output(model, "t5")) < 2e-5


@every_encoder_decoder
def test_the_decoder_reads_what_the_model_itself_makes_of_labels(variant: str) -> None:
    model = tiny_model(variant)
    batch = dict(pair_batch())
    start = None if variant == "mbart" else model.config.decoder_start_token_id
    batch["decoder_input_ids"][:, 0] = start if start is not None else last_of(batch["labels"])
    with torch.no_grad():
        ours = model(**{name: value for name, value in batch.items() if name != "labels"}).logits
        read = ("input_ids", "attention_mask", "labels")
        theirs = model(**{name: batch[name] for name in read}).logits
    seen = batch["labels"] != -100
    assert relative(theirs[seen], ours[seen]) < 2e-5


def last_of(labels: Tensor) -> Tensor:
    """Return the last label of every row that is one."""
    return labels.gather(1, (labels != -100).sum(1, keepdim=True) - 1)[:, 0]


def gated(model: nn.Module, group: Group, samples: int) -> tuple[Tensor, Callable[[], None]]:
    """Multiply a group's units by one real parameter for each sample, wherever they are read."""
    gate = torch.ones(samples, group.units, requires_grad=True)
    width = consumers(group)[0].width

    def multiply(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0] * gate.repeat_interleave(width, dim=1)[:, None], *args[1:])

    handles = [find_module(model, span.module).register_forward_pre_hook(multiply) for span in consumers(group)]
    return gate, lambda: [handle.remove() for handle in handles] and None


def test_a_unit_of_many_layers_has_one_gate() -> None:
    model = with_lora(tiny_model("t5", layers=3))
    groups, batch = find_groups(tiny_config("t5", layers=3)), pair_batch()
    scorer = make_scorer(criteria.get("gate"), model, groups, power=2, normalize=False, seed=0)
    model.train()
    for _ in range(2):  # two micro-batches
        model(**batch).loss.backward()
    found = scorer.collect()
    scorer.close()
    for group in groups:
        gate, remove = gated(model, group, samples=len(batch["labels"]))
        model(**batch).loss.backward()
        remove()
        assert gate.grad is not None
        torch.testing.assert_close(found[group.name].float(), gate.grad.square().mean(0), rtol=1e-3, atol=1e-12)


@pytest.mark.parametrize("variant", ["t5", "bart"])
def test_each_stack_is_refitted_on_its_own_stream(variant: str) -> None:
    """Rows of other lengths in the two stacks, and padding: what is refitted must come nearer to the dense model."""
    model = with_lora(tiny_model(variant))
    groups = find_groups(tiny_config(variant))
    plan = choose(groups, {g.name: max(1, g.units * 3 // 4) for g in groups}, seed=5)
    rows = {name: value for name, value in pair_batch().items() if name != "labels"}
    present = rows["decoder_attention_mask"].bool()

    def answers(one: nn.Module) -> Tensor:
        with torch.no_grad():
            found: Tensor = one.eval()(**rows).logits[present]
        return found

    def pruned(*, refitted: bool) -> Tensor:
        smaller = copy.deepcopy(model)
        if refitted:
            apply_refits_(smaller, groups, plan.kept, solve_refits(smaller, groups, plan.kept, rows))
        slice_(smaller, groups, plan.kept)
        return answers(smaller)

    dense = answers(model)
    assert (pruned(refitted=True) - dense).norm() < 0.7 * (pruned(refitted=False) - dense).norm()


@pytest.mark.parametrize(("variant", "scales"), [("t5", True), ("t5-gated", False)])
def test_every_variant_of_t5_keeps_how_its_head_scales(variant: str, scales: bool, tmp_path: Path) -> None:
    model = tiny_model(variant)
    groups = find_groups(model.config)
    dense, kept = (
        copy.deepcopy(model.config),
        choose(groups, {group.name: max(1, group.units // 2) for group in groups}, seed=0).kept,
    )
    slice_(model, groups, kept)
    expected = output(model, variant)
    save_model(model, tmp_path, config=dense, groups=groups, counts={name: len(units) for name, units in kept.items()})
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["scale_decoder_outputs"] is scales
    assert relative(output(from_pretrained(tmp_path), variant), expected) < 1e-5


@pytest.mark.parametrize(("installed", "refused"), [((5, 17), True), ((5, 18), False)])
def test_umt5_is_refused_where_its_decoder_sees_later_tokens(
    installed: tuple[int, int], refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(t5, "transformers_version", lambda: installed)
    config = CONFIG_MAPPING["umt5"](num_layers=1)
    if refused:
        with pytest.raises(UnsupportedModelError, match=r"umt5: .*pip install 'transformers>=5\.18'"):
            find_groups(config)
    else:
        assert len(find_groups(config)) == 5


def test_a_plan_names_groups_that_span_layers() -> None:
    groups = find_groups(tiny_config("t5"))
    assert Plan.from_json(Plan.full(groups).to_json()).units["encoder.block"] == 8
