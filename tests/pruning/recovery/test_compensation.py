"""When units go, what is left gives what was there before as nearly as least squares can."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from loraprune.errors import ConfigError, NumericsError
from loraprune.families import find_groups
from loraprune.groups import Group
from loraprune.models.adapters import projection
from loraprune.pruning.masking import Masks
from loraprune.pruning.recovery.compensation import apply_refits_, solve_refits
from loraprune.pruning.recovery.least_squares import RIDGES, Fit, refit
from loraprune.pruning.recovery.rows import Rows
from loraprune.pruning.recovery.stream import token_weights
from loraprune.pruning.recovery.trace import Trace
from loraprune.pruning.surgery import slice_
from loraprune.training.calibration import CalibrationRows
from tests.fitting import config, prune
from tests.tiny import choose, logits, relative, tiny_model, tokens, with_lora


def adapted(variant: str = "llama") -> PeftModel:
    return with_lora(tiny_model(variant))


def rows(ids: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids) if mask is None else mask}


def problem(*, seed: int = 0, tokens: int = 200, aside: int = 40) -> Fit:
    """Return a random problem in float64 whose tokens and channels differ in size, as those of real models do."""
    draw = torch.Generator().manual_seed(seed)
    z, mix, weight, goal, size = (
        torch.randn(*shape, generator=draw, dtype=torch.float64)
        for shape in ((tokens, 8), (8, 8), (7, 8), (tokens, 7), (tokens, 1))
    )
    judging = torch.zeros(tokens, dtype=torch.bool)
    judging[:aside] = True
    return Fit(
        z @ mix, weight, z @ torch.randn(8, 7, generator=draw, dtype=torch.float64) + 0.1 * goal, size.exp(), judging
    )


@pytest.mark.parametrize("with_bias", [False, True])
def test_the_refit_is_weighted_ridge_regression_in_float64(with_bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loraprune.pruning.recovery.least_squares.RIDGES", (0.05,))
    fit = problem()
    change, shift, before, left = refit(fit, with_bias=with_bias, path="w")
    learned, root = fit.learning, fit.weights.sqrt()
    seen = torch.cat((fit.z, torch.ones(200, 1, dtype=torch.float64)), 1) if with_bias else fit.z
    damping = (0.05 * (root[learned] * seen[learned]).square().sum(0)).sqrt().diag()
    error = fit.goal - fit.z @ fit.weight.T
    targets = torch.cat((root[learned] * error[learned], torch.zeros(len(damping), 7, dtype=torch.float64)))
    solution = torch.linalg.lstsq(torch.cat((root[learned] * seen[learned], damping)), targets).solution.T
    torch.testing.assert_close(torch.cat((change, shift[:, None]), 1) if with_bias else change, solution)
    remaining = error - fit.z @ change.T - shift
    for weighted, found in ((error, before), (remaining, left)):
        torch.testing.assert_close((fit.weights * weighted.square())[fit.aside].sum(), found)
    assert left < before


def test_a_refit_that_does_not_help_is_left_out() -> None:
    """Few tokens to learn from, and others to judge by whose goal is what the weights give already."""
    fit = problem(tokens=30, aside=20)
    right = fit.z @ fit.weight.T
    goal = torch.where(fit.aside[:, None], right + 1e-3 * fit.goal, right + fit.goal)
    change, _, before, left = refit(replace(fit, goal=goal), with_bias=False, path="w")
    assert not change.any()
    assert before == left
    assert refit(replace(fit, goal=right + fit.goal), with_bias=False, path="w")[0].any()  # the control


def test_ridges_are_chosen_by_the_tokens_aside() -> None:
    """With few tokens a large ridge is best, with many a small one: the smallest always is not."""
    fit = problem(tokens=24, aside=12)
    _, _, _, chosen = refit(fit, with_bias=False, path="w")
    alone = {}
    for ridge in RIDGES:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("loraprune.pruning.recovery.least_squares.RIDGES", (ridge,))
            alone[ridge] = refit(fit, with_bias=False, path="w")[3]
    assert chosen <= alone[RIDGES[-1]]
    assert chosen <= alone[RIDGES[0]]


def test_massive_tokens_do_not_decide_alone() -> None:
    stream = torch.randn(100, 8, generator=torch.Generator().manual_seed(0))
    stream[3] *= 1000
    weights = token_weights(stream)
    assert weights.mean() == pytest.approx(1, abs=1e-5)
    share = weights[3] * stream[3].square().sum() / (weights * stream.square()).sum()
    plain = stream[3].square().sum() / stream.square().sum()
    assert plain > 0.99
    assert share < 0.05


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_trace_too_large_for_memory_is_the_same_from_files(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, ids = adapted().to(dtype), tokens(19)
    mask = torch.ones_like(ids)
    mask[3, 2:] = 0  # parts of unequal length
    groups = find_groups(model.config)
    held = Trace(model, groups, rows(ids, mask)).outputs
    monkeypatch.setattr("loraprune.runtime.spool.IN_MEMORY", 0)
    filed = Trace(model, groups, rows(ids, mask)).outputs
    assert filed.keys() == held.keys()
    for path, outputs in held.items():
        assert torch.equal(filed[path], outputs), path
        assert filed[path].data_ptr() % 4096 == 0, "not mapped: a control that the file was used"
        assert not torch.equal(filed[path][:16], filed[path][-16:])


def test_activations_that_are_no_numbers_are_refused() -> None:
    fit = replace(problem(), z=torch.full((200, 8), torch.nan, dtype=torch.float64))
    with pytest.raises(NumericsError, match=r"'w': an activation is NaN"):
        refit(fit, with_bias=False, path="w")


def refitted(model: PeftModel, groups: Sequence[Group], kept: Mapping[str, Sequence[int]], inputs: Rows) -> None:
    """Refit a model that is not cut yet."""
    apply_refits_(model, groups, kept, solve_refits(model, groups, kept, inputs))


@pytest.mark.parametrize("variant", ["llama", "phi3", "olmo2"])
def test_a_refitted_model_is_nearer_to_the_dense_one(variant: str) -> None:
    ids = tokens(32, 48)
    dense = logits(adapted(variant), ids)
    found = {}
    for way in ("refitted", "plain"):
        model = adapted(variant)
        groups = find_groups(model.get_base_model().config)
        plan = choose(groups, {g.name: 3 if g.kind == "attention" else 60 for g in groups})
        if way == "refitted":
            refitted(model, groups, plan.kept, rows(ids))
        slice_(model, groups, plan.kept)
        found[way] = (logits(model, ids) - dense).norm().item()
    assert found["refitted"] < 0.97 * found["plain"]


def test_only_what_reads_units_is_changed() -> None:
    model, ids = adapted(), tokens(64, 24)
    groups = find_groups(model.get_base_model().config)
    kept = {g.name: range(g.units // 2) for g in groups}
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    refitted(model, groups, kept, rows(ids))
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(before[name], tensor)}
    readers = ("self_attn.o_proj", "mlp.down_proj")
    assert changed == {f"base_model.model.model.layers.{i}.{r}.base_layer.weight" for i in (0, 1) for r in readers}


def test_a_model_that_loses_nothing_stays_as_it_was() -> None:
    ids = tokens(32, 48)
    model, before = adapted(), logits(adapted(), ids)
    groups = find_groups(model.get_base_model().config)
    refitted(model, groups, {g.name: range(g.units) for g in groups}, rows(ids))
    assert relative(before, logits(model, ids)) < 1e-5


def test_a_layer_that_loses_nothing_stays_as_it_was_whatever_the_layers_below_lose() -> None:
    """Units are fitted to what they give in the whole model: with inputs that hold errors least squares would shrink weights."""
    ids = tokens(32, 48)
    model = adapted()
    groups = find_groups(model.get_base_model().config)
    kept = {g.name: range(g.units if "layers.1" in g.name else g.units // 2) for g in groups}
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    refitted(model, groups, kept, rows(ids))
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(before[name], tensor)}
    assert changed == {
        f"base_model.model.model.layers.0.{r}.base_layer.weight" for r in ("self_attn.o_proj", "mlp.down_proj")
    }


def test_padding_is_not_looked_at() -> None:
    weights = []
    for filler in (3, 77):
        model, ids = adapted(), tokens(8, 24)
        groups = find_groups(model.get_base_model().config)
        mask = torch.ones_like(ids)
        mask[:, 16:] = 0
        ids = torch.where(mask.bool(), ids, filler)
        refitted(model, groups, {g.name: range(g.units // 2) for g in groups}, rows(ids, mask))
        weights.append(projection(model, "model.layers.1.mlp.down_proj").layer.weight)
    torch.testing.assert_close(*weights)


def test_calibration_rows_are_spread_over_the_data_and_others_each_time() -> None:
    data = [{"input_ids": torch.full((8,), place)} for place in range(10)]
    loader = SimpleNamespace(
        dataset=data, collate_fn=lambda some: {"input_ids": torch.stack([r["input_ids"] for r in some])}
    )
    found = CalibrationRows(loader, tokens=24)
    first, second = next(found), next(found)
    assert first["input_ids"][:, 0].tolist() == [0, 3, 6]
    assert second["input_ids"][:, 0].tolist() == [1, 4, 7]
    assert set(first) == {"input_ids"}
    with pytest.raises(ConfigError, match="has no random access to rows"):
        CalibrationRows(SimpleNamespace(dataset=iter(data), collate_fn=None), tokens=24)


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
            refitted(model, groups, second, rows(ids))
        else:
            smaller = slice_(model, groups, first.kept)
            places = {name: range(len(kept)) for name, kept in second.items()}
            refitted(model, smaller, places, rows(ids))
        weight = projection(model, "model.layers.1.mlp.down_proj").layer.weight
        assert isinstance(weight, torch.Tensor)
        weights[way] = weight[:, list(second["model.layers.1.mlp"])] if way == "masked" else weight[:, :30]
    torch.testing.assert_close(weights["masked"], weights["cut"], rtol=1e-3, atol=1e-3)


@torch.no_grad()
def twins() -> PeftModel:
    """Return a model whose layer 1 gives what layer 0 computes and does not use: layer 0 can replace it."""
    model = with_lora(tiny_model("llama", layers=3))
    tensors = dict(model.named_parameters())
    unused = ("layers.0.self_attn.o_proj", "layers.0.mlp.down_proj", "layers.1.self_attn.o_proj")
    for name, tensor in tensors.items():
        if any(path in name for path in unused) and "lora_A" not in name:
            tensor.zero_()
        if "layers.1." in name and any(part in name for part in ("gate_proj", "up_proj", "post_attention")):
            tensor.copy_(tensors[name.replace("layers.1.", "layers.0.")])
    return model


def test_the_projection_before_a_layer_that_goes_takes_over_what_the_layer_gave() -> None:
    ids, dense, found = tokens(32, 48), logits(twins(), tokens(32, 48)), {}
    for way in ("refitted", "plain"):
        model = twins()
        groups = find_groups(model.get_base_model().config)
        kept = {g.name: () if "layers.1." in g.name else range(g.units) for g in groups}
        if way == "refitted":
            refits = solve_refits(model, groups, kept, rows(ids))
            assert list(refits) == ["model.layers.0.mlp.down_proj"]
            apply_refits_(model, groups, kept, refits)
        slice_(model, groups, kept)
        found[way] = relative(dense, logits(model, ids))
    assert found["refitted"] < 0.2 * found["plain"]


def test_nothing_takes_over_the_first_layer() -> None:
    model = adapted()
    groups = find_groups(model.get_base_model().config)
    for layer, absorbing in ((0, []), (1, ["model.layers.0.mlp.down_proj"])):
        kept = {g.name: () if f"layers.{layer}." in g.name else range(g.units) for g in groups}
        assert list(solve_refits(model, groups, kept, rows(tokens(32, 48)))) == absorbing
