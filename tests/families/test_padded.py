"""The compatibility export: pruned weights in the dense stock shapes, exactly silent where units were removed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from loraprune.errors import CheckpointError, PlanError, VerificationError
from loraprune.export import padded as module
from loraprune.export.padded import write_padded
from loraprune.groups import consumers
from loraprune.models.adapters import cuts
from loraprune.models.loading import from_pretrained
from loraprune.plan import Plan
from loraprune.pruning.surgery import slice_
from tests.families.uneven import LAYERS, SAME, cut, every_variant, groups_of, save
from tests.tiny import logits, relative, tiny_config, tiny_model, tokens, uneven_plan, uniform_plan


@every_variant
@pytest.mark.parametrize("widths", ["even", "uneven"])
def test_the_padded_export_is_the_dense_stock_model_without_the_removed_units(
    variant: str, widths: str, tmp_path: Path
) -> None:
    groups = groups_of(variant)
    plan = uniform_plan(groups, 3, 40) if widths == "even" else uneven_plan(groups)
    experts = {group.name: tuple(range(group.units)) for group in groups if group.kind == "expert"}
    plan = Plan(plan.units, {**plan.kept, **experts})
    sliced = cut(variant, plan, tmp_path / "pruned")
    found = write_padded(from_pretrained(tmp_path / "pruned"), plan, tmp_path / "padded", dtype=torch.float32)
    padded = AutoModelForCausalLM.from_pretrained(tmp_path / "padded")
    assert found < SAME
    assert relative(logits(sliced, tokens()), logits(padded, tokens())) < SAME
    dense = dict(tiny_model(variant, layers=LAYERS).named_parameters())
    assert {name: p.shape for name, p in padded.named_parameters()} == {name: p.shape for name, p in dense.items()}
    ffn = next((group for group in groups if group.kind == "ffn"), None)
    if ffn is None:
        return
    path, kept = consumers(ffn)[0].module, list(plan.kept[ffn.name])
    in_dim = next(cuts(padded.get_submodule(path), "in")).dim
    down, was = (each.movedim(in_dim, 0) for each in (padded.get_parameter(f"{path}.weight"), dense[f"{path}.weight"]))
    assert torch.equal(down[kept], was[kept])  # at their places in the dense model
    assert int((down == 0).all(1).sum()) == ffn.units - len(kept)


def test_units_padded_to_other_places_compute_the_same_but_shifted_columns_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = groups_of("llama")
    plan = uneven_plan(groups)
    cut("llama", plan, tmp_path / "pruned")
    model = from_pretrained(tmp_path / "pruned")
    other = Plan(plan.units, {name: tuple(range(len(kept))) for name, kept in plan.kept.items()})
    assert write_padded(model, other, tmp_path / "other", dtype=torch.float32) < SAME

    fill = module.fill_dense_

    def careless(dense: Any, *arguments: Any) -> None:
        fill(dense, *arguments)
        down = dense.get_parameter("model.layers.0.mlp.down_proj.weight")
        down.data = down.data.roll(1, dims=1)

    monkeypatch.setattr(module, "fill_dense_", careless)
    with pytest.raises(VerificationError, match="pruned and padded"):
        write_padded(model, plan, tmp_path / "wrong", dtype=torch.float32)


def test_a_plan_of_another_model_pads_nothing(tmp_path: Path) -> None:
    groups = groups_of("llama")
    cut("llama", uneven_plan(groups), tmp_path / "pruned")
    model = from_pretrained(tmp_path / "pruned")
    for plan in (uneven_plan(groups, seed=1), uneven_plan(groups[:2])):
        with pytest.raises(CheckpointError, match="belongs to another model"):
            write_padded(model, plan, tmp_path / "padded", dtype=torch.float32)


def test_removed_experts_cannot_be_padded_as_the_router_would_choose_them(tmp_path: Path) -> None:
    plan = uneven_plan(groups_of("mixtral"))
    cut("mixtral", plan, tmp_path / "pruned")
    with pytest.raises(PlanError, match="router would still choose"):
        write_padded(from_pretrained(tmp_path / "pruned"), plan, tmp_path / "padded", dtype=torch.float32)


def test_a_norm_whose_epsilon_matters_cannot_be_padded(tmp_path: Path) -> None:
    config = tiny_config("olmo2", layers=LAYERS)
    config.rms_norm_eps = 0.5
    model, groups = AutoModelForCausalLM.from_config(config), groups_of("olmo2")
    plan = uneven_plan(groups)
    slice_(model, groups, plan.kept)
    save(model, tmp_path / "pruned", config=config, groups=groups, plan=plan)
    pruned = from_pretrained(tmp_path / "pruned")
    with pytest.raises(PlanError, match="epsilon"):
        write_padded(pruned, plan, tmp_path / "padded", dtype=torch.float32)
