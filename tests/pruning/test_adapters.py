"""Kinds of adapters: each is scored, masked, cut and merged as plain LoRA is, and refused where it cannot be."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer

from loraprune import LoRAPruneCallback
from loraprune.errors import ConfigError
from loraprune.families import find_groups
from loraprune.models.adapters import (
    attach_lora,
    find_module,
    linear_paths,
    lora_plus_optimizer,
    magnitudes,
    merge_lora,
    merging_error,
    projection,
)
from loraprune.models.adapters.kinds import PEFT_OPTIONS
from loraprune.pruning import masking, surgery
from loraprune.pruning.masking import Masks
from loraprune.pruning.surgery import slice_
from loraprune.scoring import make_scorer
from loraprune.scoring.criteria import criteria
from tests.fitting import SAME_RUN, Rows, adapted, arguments, config, distance, prune, weights
from tests.tiny import output, relative, tiny_model, tokens, uneven_plan, with_lora

SAME = 2e-5
"""largest relative difference of logits that float32 explains"""
OTHERS = [kind for kind in PEFT_OPTIONS if kind != "lora"]


@pytest.mark.parametrize("variant", ["llama", "gpt2", "phi3", "resnet"])
def test_magnitudes_of_dora_keep_the_output_when_columns_go(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = with_lora(tiny_model(variant), kind="dora")
    groups = find_groups(model.get_base_model().config)
    plan, full = uneven_plan(groups), output(model, variant)
    before = [each.detach().clone() for each in magnitudes(model)]
    masks = Masks(model, groups)
    masks.set(plan.kept)
    masked = output(model, variant)
    masks.remove()
    assert relative(full, output(model, variant)) < SAME
    torch.testing.assert_close([each.detach() for each in magnitudes(model)], before, rtol=1e-5, atol=0)
    twin = copy.deepcopy(model)
    slice_(model, groups, plan.kept)
    assert relative(masked, output(model, variant)) < SAME
    monkeypatch.setattr(surgery, "factors_kept", lambda _: nullcontext())
    slice_(twin, groups, plan.kept)
    assert relative(masked, output(twin, variant)) > 1e-3  # the control: magnitudes that do not follow


@pytest.mark.parametrize(
    ("kind", "criterion"),
    [("dora", "lora"), ("dora", "gradient"), ("rslora", "lora"), ("pissa", "lora"), ("olora", "lora")],
)
def test_shrinking_equals_masked_training(kind: Any, criterion: str, tmp_path: Path) -> None:
    runs = []
    for shrink in (True, False):
        model, callback, _ = prune(tmp_path, config(criterion=criterion, shrink=shrink, adapter=kind), steps=20)
        assert callback.pruner is not None
        runs.append((callback.pruner.plan, weights(model)))
    assert runs[0][0] == runs[1][0]
    assert distance(runs[0][1], runs[1][1]) < SAME_RUN


def test_norms_over_masked_columns_would_train_another_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for shrink in (True, False):
        settings = config(criterion="magnitude", schedule="oneshot", cooldown=0.7, adapter="dora", shrink=shrink)
        if not shrink:
            monkeypatch.setattr(masking, "count_columns_", lambda *_: None)
        model, _, _ = prune(tmp_path, settings, steps=20)
        found.append(weights(model))
    assert distance(*found) > 5 * SAME_RUN


@pytest.mark.parametrize("kind", PEFT_OPTIONS)
def test_the_merged_weights_are_those_that_are_scored(kind: str) -> None:
    model = with_lora(tiny_model("llama"), kind=kind)
    paths = linear_paths(find_groups(model.get_base_model().config))
    seen = {path: projection(model, path).merged_rows(0, projection(model, path).shape[0]) for path in paths}
    assert (merging_error(model, paths[0]) or 0) < 1e-5
    expected = output(model, "llama")
    merged = merge_lora(model)
    assert relative(expected, output(merged, "llama")) < SAME
    for path in paths:
        torch.testing.assert_close(find_module(merged, path).weight, seen[path], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["pissa", "olora", "dora"])
def test_attaching_an_adapter_changes_weights_but_not_the_model(kind: str) -> None:
    dense = output(tiny_model("llama"), "llama")
    model = tiny_model("llama")
    path, groups = "model.layers.0.mlp.down_proj", find_groups(model.config)
    before = find_module(model, path).weight.detach().clone()
    model = attach_lora(model, groups, rank=4, alpha=8.0, dropout=0.0, seed=0, kind=kind)
    assert relative(dense, output(model, "llama")) < SAME
    moved = not torch.equal(projection(model, path).base_rows(0, len(before)), before)
    assert moved == (kind != "dora")
    with model.disable_adapter():  # the control: what moved to the factors is missing
        assert (relative(dense, output(model, "llama")) > 1e-3) == moved


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("criterion", ["magnitude", "gradient", "lora", "sketch", "wanda"])
def test_scores_are_those_of_the_merged_weights(kind: str, criterion: str) -> None:
    model = with_lora(tiny_model("llama"), kind=kind).train()
    groups, ids = find_groups(model.get_base_model().config), tokens(rows=4)
    scorer = make_scorer(criteria.get(criterion), model, groups, power=2, normalize=False, seed=0)
    model(input_ids=ids, labels=ids).loss.backward()
    found = scorer.collect()
    scorer.close()
    assert all(torch.isfinite(scores).all() and scores.std() > 0 for scores in found.values())
    if criterion not in ("magnitude", "gradient"):
        return
    plain = merge_lora(model).requires_grad_(True)
    plain(input_ids=ids, labels=ids).loss.backward()
    path = "model.layers.1.mlp"
    expected = torch.zeros(found[path].shape, dtype=torch.float64)
    for name, dim in (("gate_proj", 1), ("up_proj", 1), ("down_proj", 0)):
        weight = find_module(plain, f"{path}.{name}").weight
        saliency = weight.detach() if criterion == "magnitude" else weight.detach() * weight.grad
        expected += saliency.double().square().sum(dim)
    torch.testing.assert_close(found[path], expected, rtol=1e-3, atol=0)


def test_rslora_is_scaled_by_the_root_of_the_rank() -> None:
    path = "model.layers.0.mlp.down_proj"
    scales = {kind: projection(with_lora(tiny_model("llama"), kind=kind), path).scaling for kind in ("lora", "rslora")}
    assert scales == {"lora": 2.0, "rslora": 4.0}  # rank 4, alpha 8


def test_lora_plus_shrinks_as_it_masks(tmp_path: Path) -> None:
    plans, found = [], []
    for shrink, ratio in ((True, 4.0), (False, 4.0), (True, 1.0)):
        settings = config(shrink=shrink)
        model, callback = adapted(settings), LoRAPruneCallback(settings)
        made = lora_plus_optimizer(model, torch.optim.AdamW, {"lr": 1e-3}, ratio=ratio)
        trainer = Trainer(
            model=model, args=arguments(tmp_path, steps=20), train_dataset=Rows(), callbacks=[callback],
            optimizers=(made, None),
        )  # fmt: skip
        trainer.train()
        assert callback.pruner is not None
        assert callback.pruner.is_done
        plans.append(callback.pruner.plan)
        found.append(weights(model))
    assert plans[0] == plans[1]
    assert distance(found[0], found[1]) < SAME_RUN
    assert plans[0] != plans[2] or distance(found[0], found[2]) > 1e-2  # the control: one rate for A and B


@pytest.mark.parametrize(
    ("kind", "variant", "words"),
    [
        ("olora", "gpt2", "stores its weight as .in, out."), ("pissa", "resnet", "is a convolution"),
        ("adalora", "llama", "one of lora, rslora, dora, pissa, olora is needed"),
    ],
)  # fmt: skip
def test_a_kind_that_cannot_be_attached_is_refused(kind: str, variant: str, words: str) -> None:
    model = tiny_model(variant)
    with pytest.raises(ConfigError, match=f"--adapter {kind}: .*{words}"):
        attach_lora(model, find_groups(model.config), rank=2, alpha=4.0, dropout=0.0, seed=0, kind=kind)
    attach_lora(model, find_groups(model.config), rank=2, alpha=4.0, dropout=0.0, seed=0, kind="rslora")
