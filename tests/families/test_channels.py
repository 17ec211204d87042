"""Channels of convolutional networks: through batch norm in training, and weights that belong to two groups."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from loraprune import from_pretrained
from loraprune.errors import PlanError
from loraprune.families import find_groups
from loraprune.groups import Group
from loraprune.models.adapters import find_module
from loraprune.models.saving import save_model, storable_counts
from loraprune.pruning.allocation import ALLOCATIONS, Space, reach
from loraprune.pruning.masking import Masks, norm_left
from loraprune.pruning.surgery import slice_
from loraprune.pruning.target import measure_budget
from loraprune.pruning.verify import fill_dense_
from tests.tiny import output, relative, tiny_config, tiny_model, uneven_plan, uniform_plan, with_lora
from tests.vision import VISION, image_batch

CONVOLUTIONAL = [name for name, one in VISION.items() if one.model_type in ("resnet", "convnext")]
every_network = pytest.mark.parametrize("variant", CONVOLUTIONAL)


@pytest.mark.parametrize("variant", [name for name in CONVOLUTIONAL if name.startswith("resnet")])
def test_batch_norm_learns_the_same_statistics_masked_and_sliced(variant: str) -> None:
    model = with_lora(tiny_model(variant))
    groups = find_groups(tiny_config(variant))
    plan, batch = uneven_plan(groups), image_batch()
    twin = copy.deepcopy(model)
    masks = Masks(twin, groups)
    masks.set(plan.kept)
    slice_(model, groups, plan.kept)
    before = next(buffer.clone() for name, buffer in model.named_buffers() if name.endswith("running_mean"))
    losses = {}
    for name, trained in (("masked", twin), ("sliced", model)):
        optimizer = torch.optim.AdamW([p for p in trained.parameters() if p.requires_grad], lr=1e-3)
        losses[name] = []
        for _ in range(4):
            loss = trained.train()(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses[name].append(loss.item())
    # A batch norm's mean is over as many numbers, in another order; AdamW makes more of the last bit.
    assert losses["sliced"] == pytest.approx(losses["masked"], rel=1e-3)
    masks.remove()
    means = [buffer for name, buffer in model.named_buffers() if name.endswith("running_mean")]
    slice_(twin, groups, plan.kept)
    others = [buffer for name, buffer in twin.named_buffers() if name.endswith("running_mean")]
    assert means
    for one, other in zip(means, others, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    assert not torch.equal(means[0], before)  # they did learn


def test_a_layer_norm_counts_only_the_channels_that_are_left() -> None:
    norm = nn.LayerNorm(6)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x, left = torch.randn(4, 5, 6), torch.tensor([0, 2, 5])
    found = norm_left(norm, x, left)
    smaller = nn.LayerNorm(3)
    smaller.weight.data, smaller.bias.data = norm.weight.data[left], norm.bias.data[left]
    torch.testing.assert_close(found[..., left], smaller(x[..., left]))
    assert not found[..., [1, 3, 4]].any()
    zeros = torch.zeros_like(x)
    zeros[..., left] = x[..., left]
    assert relative(norm(zeros)[..., left], found[..., left]) > 1e-2  # masking the input alone is another function


@every_network
def test_weights_between_two_groups_are_counted_once(variant: str) -> None:
    model, groups = tiny_model(variant), find_groups(tiny_config(variant))
    budget = measure_budget(model, groups)
    assert budget.shared
    assert budget.prunable <= model.num_parameters()
    linear = sum(each * budget.units[name] for name, each in budget.unit_parameters.items())
    assert linear > model.num_parameters()  # what adding up units alone would say


def space(variant: str, *, step: int = 1) -> tuple[nn.Module, Space]:
    model, groups = tiny_model(variant), find_groups(tiny_config(variant))
    return model, Space(groups, measure_budget(model, groups), step, storable_counts(tiny_config(variant), groups))


@every_network
@pytest.mark.parametrize("ratio", [0.2, 0.5, 0.8])
def test_uniform_widths_reach_the_ratio_and_fit_a_stock_checkpoint(variant: str, ratio: float) -> None:
    model, of = space(variant)
    counts = reach(of, ALLOCATIONS["uniform"], ratio, {})
    assert of.storable(counts)
    assert of.budget.ratio(counts) == pytest.approx(ratio, abs=0.04)
    before = sum(p.numel() for p in model.parameters())
    slice_(model, of.groups, {name: range(count) for name, count in counts.items()})
    removed = before - sum(p.numel() for p in model.parameters())
    assert removed / of.budget.prunable == pytest.approx(of.budget.ratio(counts))


def test_widths_are_multiples_of_the_step_in_the_narrowest_group_of_a_stage() -> None:
    _, of = space("resnet", step=2)
    counts = reach(of, ALLOCATIONS["uniform"], 0.4, {})
    assert all(count % 2 == 0 for count in counts.values())
    assert any(
        count % 2 for count in reach(space("resnet")[1], ALLOCATIONS["uniform"], 0.4, {}).values()
    )  # the control
    with pytest.raises(PlanError, match="at most"):
        reach(of, ALLOCATIONS["uniform"], 0.99, {})


def of_stage(groups: tuple[Group, ...], key: str) -> list[Group]:
    return [group for group in groups if key in group.sizes]


def test_a_stock_resnet_holds_inner_channels_only_in_proportion_to_their_stream() -> None:
    groups = find_groups(tiny_config("resnet"))
    storable = storable_counts(tiny_config("resnet"), groups)
    whole = {group.name: group.units for group in groups}
    assert storable(whole)
    stage = of_stage(groups, "hidden_sizes.0")
    assert len(stage) == 5  # the stream, and two groups inside each of two bottlenecks
    assert storable(whole | {group.name: group.units // 2 for group in stage})
    assert not storable(whole | {stage[0].name: stage[0].units // 2})
    joined = find_groups(tiny_config("resnet-joined"))
    assert {"embedding_size", "hidden_sizes.0"} <= {
        key for group in joined for key in group.sizes if group.name == "resnet.embedder"
    }


@pytest.mark.parametrize("variant", [*CONVOLUTIONAL, "swin", "beit", "beit-shared", "dinov2", "clip", "deit"])
def test_widths_of_single_layers_are_saved_with_the_code_that_they_need(variant: str, tmp_path: Path) -> None:
    model, config = tiny_model(variant), tiny_config(variant)
    groups = find_groups(config)
    plan = uneven_plan(groups)
    slice_(model, groups, plan.kept)
    save_model(
        model, tmp_path, config=config, groups=groups, counts={name: len(kept) for name, kept in plan.kept.items()}
    )
    loaded = from_pretrained(tmp_path)
    assert loaded.config.model_type == f"loraprune_{config.model_type}"
    assert relative(output(model, variant), output(loaded, variant)) < 1e-6
    assert [group.units for group in find_groups(loaded.config)] == [len(plan.kept[group.name]) for group in groups]


def test_filling_a_dense_kernel_puts_rows_and_columns_where_they_were() -> None:
    model, groups = tiny_model("resnet"), find_groups(tiny_config("resnet"))
    plan = uniform_plan(groups, 1, 2)
    dense = tiny_model("resnet", seed=1)
    path = "resnet.encoder.stages.0.layers.0.layer.1.convolution"
    rows = plan.kept["resnet.encoder.stages.0.layers.0.layer.1"]
    columns = plan.kept["resnet.encoder.stages.0.layers.0.layer.0"]
    original = find_module(model, path).weight.detach().clone()  # type: ignore[operator]
    slice_(model, groups, plan.kept)
    fill_dense_(dense, model.state_dict(), groups, plan)
    filled = find_module(dense, path).weight.detach()  # type: ignore[operator]
    for row in range(4):
        for column in range(4):
            inside = row in rows and column in columns
            assert torch.equal(filled[row, column], original[row, column]) == inside
