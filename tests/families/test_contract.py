"""What every family promises: groups that fit the model, and a mask and a slice that say the same.

A family joins by a line in tests/tiny.py. What it promises of training and of saved files: test_trained.py, test_saved.py.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from loraprune.errors import GroupMismatchError
from loraprune.families import families, find_groups
from loraprune.groups import consumers
from loraprune.models.adapters import ADAPTER, base_layer, cuts, features, find_module, linear_paths
from loraprune.plan import Plan
from loraprune.pruning.surgery import check_groups, slice_
from loraprune.pruning.target import measure_budget
from tests.encoder_decoders import REFUSED
from tests.families.promises import SAME, build, every_variant, masked
from tests.tiny import EVERY, HEAD, model_type, output, relative, tiny_config, tiny_model, uneven_plan, uniform_plan

UNOWNED = {("falcon", "query_key_value"): 2 * HEAD}
"""variant and module -> rows that no unit owns: the key and the value that all query heads share"""


def test_every_registered_family_has_a_tiny_model() -> None:
    missing = set(families.names()) - {model_type(variant) for variant in EVERY} - REFUSED
    assert not missing, f"add a tiny configuration for {missing} to tests/tiny.py"


@every_variant
def test_paths_resolve_and_spans_fit_the_tensors(variant: str) -> None:
    model, groups = build(variant, lora=True)
    check_groups(model, groups)
    assert len({g.name for g in groups}) == len(groups)
    named = {name for name, _ in tiny_model(variant).named_modules()}
    assert {span.module for group in groups for span in group.spans} <= named


@every_variant
def test_units_own_every_entry_of_their_projections(variant: str) -> None:
    model, groups = build(variant, lora=False)
    owned: dict[tuple[str, str], int] = {}
    for group in groups:
        for span in group.spans:
            owned[span.module, span.side] = owned.get((span.module, span.side), 0) + group.units * span.width
    assert {path for path, _ in owned} >= set(linear_paths(groups))
    for (path, side), entries in owned.items():
        module = find_module(model, path)
        for cut in cuts(module, side):  # type: ignore[arg-type]
            assert cut.tensor.shape[cut.dim] == entries + UNOWNED.get((variant, path.rpartition(".")[2]), 0)


@every_variant
def test_a_span_that_does_not_fit_is_refused(variant: str) -> None:
    model, groups = build(variant, lora=False)
    reader = consumers(groups[0])[0]
    for wrong, message in (
        (replace(reader, width=reader.width + 1), "expects|own the same"),
        (replace(reader, offset=reader.offset + 1), "expects|own the same"),
        (replace(reader, offset=-1), "expects"),
        (replace(reader, module=f"{reader.module}x"), "no module"),
    ):
        spoilt = replace(groups[0], spans=tuple(wrong if span == reader else span for span in groups[0].spans))
        with pytest.raises(GroupMismatchError, match=message):
            check_groups(model, (spoilt, *groups[1:]))


@every_variant
def test_keeping_everything_changes_no_bit(variant: str) -> None:
    model, groups = build(variant, lora=True)
    before = output(model, variant)
    full = Plan.full(groups)
    assert torch.equal(masked(variant, model, groups, full), before)
    assert slice_(model, groups, full.kept) == groups
    assert torch.equal(output(model, variant), before)


@every_variant
@pytest.mark.parametrize(("even", "lora"), [(False, False), (True, True)], ids=["uneven-plain", "uniform-lora"])
def test_the_sliced_model_computes_what_the_masked_one_does(variant: str, even: bool, lora: bool) -> None:
    model, groups = build(variant, lora=lora)
    plan = uniform_plan(groups, 3, 40) if even else uneven_plan(groups)
    reference, dense = masked(variant, model, groups, plan), output(model, variant)
    smaller = slice_(model, groups, plan.kept)
    check_groups(model, smaller)
    sliced = output(model, variant)
    assert relative(reference, sliced) < SAME
    assert relative(dense, sliced) > 1e-2  # the removed units did matter


@every_variant
def test_another_plan_of_the_same_size_gives_another_model(variant: str) -> None:
    model, groups = build(variant, lora=False)
    reference = masked(variant, model, groups, uniform_plan(groups, 3, 40, seed=0))
    slice_(model, groups, uniform_plan(groups, 3, 40, seed=1).kept)
    assert relative(reference, output(model, variant)) > 1e-2


@every_variant
def test_two_cuts_in_a_row_equal_one(variant: str) -> None:
    model, groups = build(variant, lora=True)
    once, twice = copy.deepcopy(model), model
    final = uniform_plan(groups, 2, 24)
    wider = Plan(
        final.units,
        {n: tuple(sorted({*kept, *range(final.units[n] // 2)})) for n, kept in final.kept.items()},
    )
    slice_(once, groups, final.kept)
    between = slice_(twice, groups, wider.kept)
    slice_(twice, between, wider.positions(final))
    # Norms over all units are rescaled once or twice, which rounds differently.
    torch.testing.assert_close(once.state_dict(), twice.state_dict(), rtol=1e-6, atol=0)


@every_variant
def test_one_unit_left_in_every_group_still_works(variant: str) -> None:
    model, groups = build(variant, lora=True)
    plan = uniform_plan(groups, 1, 1)
    reference = masked(variant, model, groups, plan)
    slice_(model, groups, plan.kept)
    assert relative(reference, output(model, variant)) < SAME


@every_variant
def test_the_budget_predicts_how_many_parameters_are_left(variant: str) -> None:
    model, groups = build(variant, lora=True)
    budget, plan = measure_budget(model, groups), uneven_plan(groups)

    def base_parameters() -> int:
        return sum(p.numel() for name, p in model.named_parameters() if f".{ADAPTER}." not in name)

    before = base_parameters()
    slice_(model, groups, plan.kept)
    counts = {name: len(kept) for name, kept in plan.kept.items()}
    assert before - base_parameters() == budget.prunable - budget.kept(counts)
    # One unit more would have been noticed.
    more = counts | {groups[0].name: counts[groups[0].name] + 1}
    assert before - base_parameters() != budget.prunable - budget.kept(more)


@every_variant
def test_layers_report_the_sizes_they_have(variant: str) -> None:
    model, groups = build(variant, lora=True)
    slice_(model, groups, uneven_plan(groups).kept)
    paths = linear_paths(groups)
    assert paths
    for path in paths:
        module = find_module(model, path)
        layer = base_layer(module)
        for side in ("out", "in"):
            cut = next(cuts(layer, side))  # type: ignore[arg-type]
            assert [getattr(layer, name) for name in features(layer, side)] == [cut.tensor.shape[cut.dim]]  # type: ignore[arg-type]
        for factor in (module.lora_A[ADAPTER], module.lora_B[ADAPTER]):  # type: ignore[index]
            names = (
                ("out_channels", "in_channels") if isinstance(factor, nn.Conv2d) else ("out_features", "in_features")
            )
            assert tuple(getattr(factor, name) for name in names) == tuple(factor.weight.shape[:2])  # type: ignore[arg-type]


@every_variant
def test_a_plan_survives_its_file(variant: str) -> None:
    groups = find_groups(tiny_config(variant))
    plan = uneven_plan(groups)
    assert Plan.from_json(plan.to_json()) == plan
    assert Plan.from_json(plan.to_json()) != uneven_plan(groups, seed=1)
