"""Cutting while training equals masking while training, with the real Trainer, AdamW and callback."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from loraprune import LoRAPruneCallback
from loraprune.errors import ConfigError, GroupMismatchError, NumericsError
from loraprune.families import find_groups
from loraprune.models.compat import enable_checkpointing
from loraprune.plan import Plan
from loraprune.pruning.pruner import Pruner
from loraprune.pruning.surgery import check_groups, renew_trained_, slice_
from tests.fitting import SAME_RUN, adapted, arguments, config, distance, fit, prune, weights
from tests.tiny import tiny_model, tokens, uneven_plan, uniform_plan, with_lora


def plan_of(callback: LoRAPruneCallback) -> Plan:
    assert callback.pruner is not None
    return callback.pruner.plan


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, dict[str, Tensor]]:
    """Return the plan and the merged weights of a run with no option of its own."""
    torch.manual_seed(0)  # as before every test
    model, callback, _ = prune(tmp_path_factory.mktemp("usual"), config())
    return plan_of(callback), weights(model)


@pytest.mark.parametrize(
    ("variant", "criterion"),
    [("llama", "lora"), ("llama", "gate"), ("llama", "magnitude"), ("phi3", "gate"), ("olmo2", "lora")],
)  # scores of cut models by every criterion and of more variants: tests/scoring/criteria/test_all_kinds.py
def test_shrinking_while_training_equals_masked_training_over_a_whole_run(
    variant: str, criterion: str, tmp_path: Path
) -> None:
    runs = {}
    for shrink in (True, False):
        settings = config(criterion=criterion, shrink=shrink)
        model, callback, _ = prune(tmp_path, settings, variant=variant)
        assert len(callback.history) >= 5
        assert plan_of(callback) != Plan.full(find_groups(tiny_model(variant).config))
        runs[shrink] = (plan_of(callback), weights(model))
    assert runs[True][0] == runs[False][0]
    assert distance(runs[True][1], runs[False][1]) < SAME_RUN


@pytest.mark.parametrize(
    ("settings", "run"),
    [({"schedule": "oneshot"}, {}), ({"seed": 1}, {}), ({}, {"seed": 1}), ({"decay": 0.0}, {}), ({"power": 1}, {})],
    ids=["schedule", "LoRA seed", "data order", "decay", "power"],
)
def test_another_schedule_or_seed_gives_another_model(
    settings: dict[str, Any], run: dict[str, Any], usual: tuple[Plan, dict[str, Tensor]], tmp_path: Path
) -> None:
    other, callback, _ = prune(tmp_path, config(**settings), **run)
    assert plan_of(callback) != usual[0] or distance(usual[1], weights(other)) > 1e-2


def test_the_same_options_give_the_same_model(usual: tuple[Plan, dict[str, Tensor]], tmp_path: Path) -> None:
    """The control of the test above."""
    again, callback, _ = prune(tmp_path, config())
    assert plan_of(callback) == usual[0]
    assert distance(usual[1], weights(again)) == 0


@pytest.mark.parametrize("variant", ["llama", "phi3"])
def test_normalised_scores_shrink_as_they_mask(variant: str, tmp_path: Path) -> None:
    plans = [
        plan_of(prune(tmp_path, config(normalize=True, power=1, shrink=shrink), variant=variant)[1])
        for shrink in (True, False)
    ]
    assert plans[0] == plans[1]


def test_the_target_is_reached_and_the_model_smaller(tmp_path: Path) -> None:
    model, callback, _ = prune(tmp_path, config())
    pruner = callback.pruner
    assert pruner is not None
    assert pruner.is_done
    assert pruner.ratio() == pytest.approx(0.5, abs=0.03)
    ratios = [entry["ratio"] for entry in callback.history]
    assert ratios == sorted(ratios)
    assert callback.history[-1] == {"step": 27, "ratio": pruner.ratio()}
    check_groups(model, pruner.present)


def test_optimiser_state_keeps_the_entries_of_the_units_that_stay() -> None:
    model = with_lora(tiny_model("llama"))
    groups = find_groups(tiny_model("llama").config)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    for _ in range(2):
        model(input_ids=tokens(), labels=tokens()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    before = {name: copy.deepcopy(optimizer.state[p]) for name, p in model.named_parameters() if p.requires_grad}
    kept = {"model.layers.1.self_attn": [1, 3], "model.layers.1.mlp": [0, 5, 95]}
    slice_(model, groups, kept, optimizer=optimizer)
    after = {name: optimizer.state[p] for name, p in model.named_parameters() if p.requires_grad}
    prefix = "base_model.model.model.layers.1"
    queries = [*range(16, 32), *range(48, 64)]
    for name, dim, entries in (
        (f"{prefix}.self_attn.q_proj.lora_B.default.weight", 0, queries),
        (f"{prefix}.self_attn.k_proj.lora_B.default.weight", 0, [*range(8, 16), *range(24, 32)]),
        (f"{prefix}.self_attn.o_proj.lora_A.default.weight", 1, queries),
        (f"{prefix}.mlp.up_proj.lora_B.default.weight", 0, [0, 5, 95]),
        (f"{prefix}.mlp.down_proj.lora_A.default.weight", 1, [0, 5, 95]),
    ):
        for moment in ("exp_avg", "exp_avg_sq"):
            expected = before[name][moment].index_select(dim, torch.tensor(entries))
            assert torch.equal(after[name][moment], expected)
    untouched = f"{prefix}.self_attn.q_proj.lora_A.default.weight"
    assert torch.equal(after[untouched]["exp_avg"], before[untouched]["exp_avg"])
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {id(p) for p in parameters}
    for parameter in parameters:
        assert optimizer.state[parameter]["exp_avg"].shape == parameter.shape
        assert optimizer.state[parameter]["step"] == 2


def test_new_parameters_after_a_cut_train_as_the_old_ones_would() -> None:
    ends = []
    for renewed in (False, True):
        torch.manual_seed(0)
        model = with_lora(tiny_model("llama"))
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        for step in range(3):
            model(input_ids=tokens(), labels=tokens()).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if step == 1:
                slice_(
                    model,
                    find_groups(tiny_model("llama").config),
                    {"model.layers.1.mlp": [0, 5, 95]},
                    optimizer=optimizer,
                )
                old = {name: p for name, p in model.named_parameters() if p.requires_grad}
                if renewed:
                    renew_trained_(model, optimizer)
                new = {name: p for name, p in model.named_parameters() if p.requires_grad}
                assert all((new[name] is old[name]) is not renewed for name in old)
        assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {id(p) for p in new.values()}
        assert set(map(id, optimizer.state)) == set(map(id, new.values()))
        ends.append(new)
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_groups_that_share_entries_or_name_no_layer_are_refused() -> None:
    model = tiny_model("llama")
    first, *others = find_groups(model.config)
    twin = dataclasses.replace(first, name="twin")
    with pytest.raises(GroupMismatchError, match=r"groups .*twin.* own the same entries"):
        check_groups(model, (first, twin, *others))
    spans = (dataclasses.replace(first.spans[0], module="model.layers.0.mlp.act_fn"), *first.spans[1:])
    with pytest.raises(GroupMismatchError, match="not a layer that can be cut"):
        check_groups(model, (dataclasses.replace(first, spans=spans),))


def test_accumulating_eight_rows_prunes_as_one_batch_of_eight(tmp_path: Path) -> None:
    for criterion in ("lora", "gate"):
        found = []
        for batch, accumulate in ((8, 1), (1, 8)):
            model, callback, _ = prune(
                tmp_path, config(criterion=criterion), steps=16, per_device_train_batch_size=batch,
                gradient_accumulation_steps=accumulate,
            )  # fmt: skip
            found.append((plan_of(callback), weights(model)))
        assert found[0][0] == found[1][0]
        assert distance(found[0][1], found[1][1]) < SAME_RUN


class ClipEarly(TrainerCallback):
    """Gives clipping back to the Trainer, which then clips before the scores are taken."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        args.max_grad_norm = 1e-3


def scores_after_a_step(folder: Path, *, clip: float, extra: tuple[TrainerCallback, ...] = ()) -> Tensor:
    settings = config()
    model, callback = adapted(settings), LoRAPruneCallback(settings)
    fit(model, arguments(folder, steps=1, max_grad_norm=clip, learning_rate=0.0), [callback, *extra])
    assert callback.pruner is not None
    return torch.cat(list(callback.pruner.scores.values.values()))


def test_the_users_clipping_leaves_the_scores_alone(tmp_path: Path) -> None:
    free = scores_after_a_step(tmp_path, clip=0.0)
    assert torch.equal(scores_after_a_step(tmp_path, clip=1e-3), free)
    clipped_before = scores_after_a_step(tmp_path, clip=1e-3, extra=(ClipEarly(),))
    assert not torch.allclose(clipped_before, free, rtol=1e-2)


def test_the_users_clipping_trains_as_the_trainers_own_where_nothing_is_pruned(tmp_path: Path) -> None:
    settings, found = config(ratio=0.0), {}
    for name, clip, callbacks in (
        ("trainer's", 0.05, []), ("ours", 0.05, [LoRAPruneCallback(settings)]), ("none", 0.0, []),
    ):  # fmt: skip
        model = adapted(settings)
        args = arguments(tmp_path, steps=10, max_grad_norm=clip, optim="sgd", learning_rate=0.5)
        fit(model, args, callbacks)
        assert args.max_grad_norm == clip  # given back
        found[name] = weights(model)
    assert distance(found["trainer's"], found["ours"]) < 1e-6
    assert distance(found["trainer's"], found["none"]) > 1e-3


@pytest.mark.parametrize("criterion", ["lora", "gate"])
def test_gradient_checkpointing_changes_nothing(criterion: str, tmp_path: Path) -> None:
    settings, found = config(criterion=criterion), []
    for checkpointing in (False, True):
        model, callback = adapted(settings), LoRAPruneCallback(settings)
        if checkpointing:
            enable_checkpointing(model)
        fit(model, arguments(tmp_path, steps=12), [callback])
        found.append((plan_of(callback), weights(model)))
    assert found[0][0] == found[1][0]
    assert distance(found[0][1], found[1][1]) < SAME_RUN


@pytest.mark.parametrize("criterion", ["lora", "gate"])
def test_bfloat16_weights_and_autocast_prune_to_the_target(criterion: str, tmp_path: Path) -> None:
    for dtype, autocast in ((torch.bfloat16, False), (torch.float32, True)):
        model, callback, _ = prune(tmp_path, config(criterion=criterion), dtype=dtype, steps=12, bf16=autocast)
        assert callback.pruner is not None
        assert callback.pruner.is_done
        tensors = weights(model)
        assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
        assert tensors["model.layers.0.mlp.up_proj.weight"].shape[0] == len(
            plan_of(callback).kept["model.layers.0.mlp"]
        )


@pytest.mark.parametrize("shrink", [True, False], ids=["shrink", "mask"])
def test_the_pruned_weights_are_rows_of_the_dense_ones(shrink: bool, tmp_path: Path) -> None:
    dense = tiny_model("llama").state_dict()
    model, callback, _ = prune(tmp_path, config(shrink=shrink))
    sliced = model.get_base_model().state_dict()
    kept = torch.tensor(plan_of(callback).kept["model.layers.1.mlp"])
    for name, dim in (("gate_proj", 0), ("up_proj", 0), ("down_proj", 1)):
        expected = dense[f"model.layers.1.mlp.{name}.weight"].index_select(dim, kept)
        assert torch.equal(sliced[f"model.layers.1.mlp.{name}.base_layer.weight"], expected)


def scores_of(pruner: Pruner, value: float) -> dict[str, torch.Tensor]:
    """Return scores that are the same for all units, where they are not told apart by a last one."""
    return {name: torch.full((count,), value, dtype=torch.float64) for name, count in pruner.plan.units.items()}


def test_units_without_any_score_are_not_removed() -> None:
    settings = config()
    pruner = Pruner(adapted(settings), settings)
    with pytest.raises(NumericsError, match="they cannot be ranked"):
        pruner.remove(1.0)


@pytest.mark.parametrize("allocation", ["uniform", "balanced", "global"])
@pytest.mark.parametrize("value", [0.0, 1.5, 1e-300])
def test_units_that_all_score_the_same_are_not_removed(value: float, allocation: Any) -> None:
    settings = config(allocation=allocation)
    pruner = Pruner(adapted(settings), settings)
    pruner.scores.update(scores_of(pruner, value), pruner.plan)
    before = pruner.plan
    with pytest.raises(NumericsError, match=r"all units of '.*' score .*they cannot be ranked"):
        pruner.remove(1.0)
    assert pruner.plan == before
    told = {name: values + torch.arange(len(values)) for name, values in scores_of(pruner, value).items()}
    pruner.scores.update(told, pruner.plan)
    pruner.remove(1.0)  # the control
    assert pruner.plan != before


def test_scores_are_restored_from_checkpoints_of_this_version_and_of_earlier_ones() -> None:
    settings = config()
    pruner = Pruner(adapted(settings), settings)
    told = {name: values + torch.arange(len(values)) for name, values in scores_of(pruner, 1.0).items()}
    pruner.scores.update(told, pruner.plan)
    pruner.remove(0.5)
    state = pruner.state_dict()
    for earlier in ({}, {"updates": 1}):
        restored = Pruner(adapted(settings), settings)
        assert restored.plan != pruner.plan  # the control
        restored.load_state_dict(state | earlier)
        assert restored.plan == pruner.plan
        for name, values in pruner.scores.values.items():
            assert torch.equal(restored.scores.values[name], values)


def test_a_model_without_lora_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no LoRA on 'model\.layers\.0\.self_attn\.q_proj'"):
        Pruner(tiny_model("llama"), config())


def test_slicing_leaves_groups_that_are_not_named() -> None:
    model = tiny_model("llama")
    groups = find_groups(model.config)
    plan = uniform_plan(groups, 2, 8)
    smaller = slice_(model, groups, {"model.layers.0.mlp": plan.kept["model.layers.0.mlp"]})
    assert [group.units for group in smaller] == [4, 8, 4, 96]
    assert smaller != slice_(tiny_model("llama"), groups, uneven_plan(groups).kept)


def test_training_goes_on_after_a_cut_while_the_graph_of_the_last_step_is_still_held() -> None:
    """Kernels that keep a tensor on their autograd node form a cycle, so that the graph outlives its step."""
    model = adapted(config())
    groups, ids = find_groups(tiny_model("llama").config), tokens(1, 8)
    held = model(input_ids=ids, labels=ids).loss
    held.backward()
    slice_(model, groups, {group.name: range(group.units // 2) for group in groups})
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    assert held.grad_fn is not None  # alive, with the nodes that know the former shapes
    gradients = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
    assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients)
