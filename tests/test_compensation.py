"""When units go, what is left gives what was there before as nearly as least squares can."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel

from loraprune.adapters import find_module, projection
from loraprune.compensation import DAMPING, RecentRows, compensate_, refit
from loraprune.errors import NumericsError
from loraprune.families import find_groups
from loraprune.masking import Masks
from loraprune.surgery import slice_
from tests.tiny import choose, logits, relative, tiny_model, tokens, with_lora
from tests.training import config, prune


def adapted(variant: str = "llama") -> PeftModel:
    return with_lora(tiny_model(variant))


def test_the_refit_is_ridge_regression_in_float64() -> None:
    generator = torch.Generator().manual_seed(0)
    z = (
        torch.randn(200, 12, generator=generator, dtype=torch.float64)
        @ torch.randn(12, 12, generator=generator).double()
    )
    weight = torch.randn(7, 12, generator=generator, dtype=torch.float64)
    stays = torch.tensor([True] * 8 + [False] * 4)
    change = refit(z, weight, stays, path="w")
    ridge = DAMPING * (z[:, stays].square().sum() / 8)
    stacked = torch.cat((z[:, stays], ridge.sqrt() * torch.eye(8, dtype=torch.float64)))
    goal = torch.cat((z[:, ~stays] @ weight[:, ~stays].T, torch.zeros(8, 7, dtype=torch.float64)))
    torch.testing.assert_close(change, torch.linalg.lstsq(stacked, goal).solution.T)
    error = (z[:, stays] @ (weight[:, stays] + change).T - z @ weight.T).norm()
    assert error < 0.9 * (z[:, ~stays] @ weight[:, ~stays].T).norm()  # the control: leaving it alone


def test_activations_that_are_no_numbers_are_refused() -> None:
    z = torch.full((3, 4), torch.nan)
    with pytest.raises(NumericsError, match=r"'w': an activation is NaN"):
        refit(z, torch.ones(2, 4), torch.tensor([True, True, False, True]), path="w")


@pytest.mark.parametrize("variant", ["llama", "phi3", "olmo2"])
def test_a_refitted_model_is_nearer_to_the_dense_one(variant: str) -> None:
    ids = tokens(16, 48)
    dense = logits(adapted(variant), ids)
    found = {}
    for way in ("refitted", "plain"):
        model = adapted(variant)
        groups = find_groups(model.get_base_model().config)
        plan = choose(groups, {g.name: 3 if g.kind == "attention" else 60 for g in groups})
        if way == "refitted":
            compensate_(model, groups, plan.kept, tokens=ids, mask=torch.ones_like(ids))
        slice_(model, groups, plan.kept)
        found[way] = (logits(model, ids) - dense).norm().item()
    assert found["refitted"] < 0.95 * found["plain"]


def test_layers_that_lose_nothing_stay_as_they_were() -> None:
    model, ids = adapted(), tokens()
    groups = find_groups(model.get_base_model().config)
    kept = {g.name: range(g.units) if "layers.0" in g.name else range(g.units // 2) for g in groups}
    before = {path: projection(model, path).layer.weight.clone() for path in (  # type: ignore[operator]
        "model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj", "model.layers.1.mlp.up_proj")}  # fmt: skip
    compensate_(model, groups, kept, tokens=ids, mask=torch.ones_like(ids))
    changed = [path for path, old in before.items() if not torch.equal(old, projection(model, path).layer.weight)]  # type: ignore[arg-type]
    assert changed == ["model.layers.1.mlp.down_proj"]


def test_padding_is_not_looked_at() -> None:
    weights = []
    for filler in (3, 77):
        model, ids = adapted(), tokens(8, 24)
        groups = find_groups(model.get_base_model().config)
        mask = torch.ones_like(ids)
        mask[:, 16:] = 0
        ids = torch.where(mask.bool(), ids, filler)
        compensate_(model, groups, {g.name: range(g.units // 2) for g in groups}, tokens=ids, mask=mask)
        weights.append(find_module(model, "model.layers.1.mlp.down_proj").base_layer.weight)
    torch.testing.assert_close(*weights)


def test_recent_rows_are_the_last_of_training_padded_to_one_length() -> None:
    model = adapted().train()
    recent = RecentRows(model, tokens=60)
    for length in (10, 12, 9):
        model(input_ids=tokens(2, length, seed=length))
    with torch.no_grad():
        model.eval()(input_ids=tokens(2, 20))
    ids, mask = recent.batch()
    assert mask.sum(1).tolist() == [12, 12, 9, 9]
    assert torch.equal(ids[:2], tokens(2, 12, seed=12))
    recent.close()
    model.train()(input_ids=tokens())
    assert not recent._batches


def test_shrinking_with_compensation_equals_masking_with_it(tmp_path: Path) -> None:
    found = {}
    for shrink in (True, False):
        model, callback, _ = prune(tmp_path, config(compensate=True, shrink=shrink, criterion="gate"), steps=20)
        assert callback.pruner is not None
        found[shrink] = callback.pruner.plan, logits(model, tokens())
    assert found[True][0] == found[False][0]
    assert relative(found[True][1], found[False][1]) < 1e-3
    without, _, _ = prune(tmp_path, config(criterion="gate"), steps=20)
    assert relative(found[True][1], logits(without, tokens())) > 0.02  # the control


def test_masked_inputs_count_as_nothing() -> None:
    """A masked model is refitted as the cut one: what a mask silences is in no second moment."""
    ids = tokens(16, 48)
    weights = {}
    for way in ("masked", "cut"):
        model = adapted()
        groups = find_groups(model.get_base_model().config)
        first = choose(groups, {g.name: 3 if g.kind == "attention" else 60 for g in groups})
        second = {name: kept[: len(kept) // 2] for name, kept in first.kept.items()}
        if way == "masked":
            Masks(model, groups).set(first.kept)
            compensate_(model, groups, second, tokens=ids, mask=torch.ones_like(ids))
        else:
            smaller = slice_(model, groups, first.kept)
            places = {name: range(len(kept)) for name, kept in second.items()}
            compensate_(model, smaller, places, tokens=ids, mask=torch.ones_like(ids))
        weight = projection(model, "model.layers.1.mlp.down_proj").layer.weight
        assert isinstance(weight, torch.Tensor)
        weights[way] = weight[:, list(second["model.layers.1.mlp"])] if way == "masked" else weight[:, :30]
    torch.testing.assert_close(weights["masked"], weights["cut"], rtol=1e-3, atol=1e-3)
