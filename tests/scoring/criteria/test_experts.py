"""Scores of experts and their channels: by their weights, or by a gate on what the router gives them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from loraprune import LoRAPruneConfig
from loraprune.errors import ConfigError
from loraprune.families import find_groups
from loraprune.pruning.masking import Masks
from loraprune.pruning.pruner import Pruner
from loraprune.pruning.target import groups_in_play
from loraprune.scoring import make_scorer
from loraprune.scoring.criteria import criteria
from tests.tiny import output, relative, tiny_config, tiny_model, tokens, with_lora

MIXTURES = ["mixtral", "qwen2_moe", "qwen3_moe"]
EXPERT_KINDS = ("expert", "expert_ffn")


@pytest.mark.parametrize("variant", MIXTURES)
def test_magnitude_adds_the_squares_of_all_that_a_unit_owns(variant: str) -> None:
    model = tiny_model(variant)
    groups = [group for group in find_groups(model.config) if group.kind in EXPERT_KINDS]
    scores = make_scorer(criteria.get("magnitude"), model, groups, power=2, normalize=False, seed=0).collect()
    for group in groups:
        stack = model.get_submodule(next(s.module for s in group.spans if s.side != "router"))
        up, down = (getattr(stack, name).detach().double().square() for name in ("gate_up_proj", "down_proj"))
        expected = up.sum((1, 2)) + down.sum((1, 2))
        if group.kind == "expert_ffn":
            expected = up.sum((0, 2)).view(2, -1).sum(0) + down.sum((0, 1))
        torch.testing.assert_close(scores[group.name], expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("variant", MIXTURES)
def test_the_gate_of_an_expert_is_the_change_of_the_loss_with_its_share(variant: str) -> None:
    model = with_lora(tiny_model(variant))
    groups = [group for group in find_groups(model.get_base_model().config) if group.kind == "expert"]
    scorer = make_scorer(criteria.get("taylor"), model, groups, power=2, normalize=False, seed=0)
    ids = tokens(rows=3)
    model(input_ids=ids, labels=ids).loss.backward()
    found = scorer.collect()
    scorer.close()
    group, step = groups[-1], 1e-2
    stack = model.get_base_model().get_submodule(f"{group.name.rpartition('.')[0]}.experts")

    def loss_with(expert: int, share: float) -> float:
        before = stack.down_proj.detach().clone()
        stack.down_proj.data[expert] *= share
        with torch.no_grad():
            value = model(input_ids=ids, labels=ids).loss.item()
        stack.down_proj.data = before
        return value

    slopes = [(loss_with(e, 1 + step) - loss_with(e, 1 - step)) / (2 * step) for e in range(group.units)]
    expected = torch.tensor(slopes).abs() / 3
    torch.testing.assert_close(found[group.name].float(), expected, rtol=0.05, atol=2e-4)


def test_the_gate_gathers_whole_samples() -> None:
    model = with_lora(tiny_model("mixtral"))
    groups = [group for group in find_groups(model.get_base_model().config) if group.kind == "expert"]
    ids, found = tokens(rows=2), []
    for batches in ([ids], [ids[:1], ids[1:]]):
        model.zero_grad()
        scorer = make_scorer(criteria.get("gate"), model, groups, power=2, normalize=False, seed=0)
        for batch in batches:
            logits = model(input_ids=batch).logits
            logits.square().sum().backward()
        found.append(scorer.collect())
        scorer.close()
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-3, atol=0)


@pytest.mark.parametrize("criterion", ["lora", "gradient", "wanda", "flap", "sketch"])
def test_a_criterion_that_needs_lora_or_hooks_refuses_experts_in_words(criterion: str) -> None:
    model = with_lora(tiny_model("mixtral"))
    with pytest.raises(ConfigError, match=f"--criterion {criterion}: .*expert.*magnitude"):
        Pruner(model, LoRAPruneConfig(criterion=criterion, kinds="all"))
    config = tiny_config("mixtral")
    left = groups_in_play(config, find_groups(config), LoRAPruneConfig(criterion=criterion))
    assert {group.kind for group in left} == {"attention"}


def frozen(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if not parameter.requires_grad)


@pytest.mark.parametrize("kinds", ["all", "expert", "expert_ffn"])
def test_a_mixture_is_pruned_to_a_ratio_of_what_is_in_play(kinds: str) -> None:
    model = with_lora(tiny_model("mixtral"))
    before = frozen(model)
    pruner = Pruner(model, LoRAPruneConfig(criterion="magnitude", kinds=kinds, ratio=0.25))
    pruner.score()
    pruner.remove(1.0)
    pruner.finish()
    removed = before - frozen(model)
    assert removed / pruner.space.budget.prunable == pytest.approx(0.25, abs=0.05)
    assert removed == pytest.approx(pruner.ratio() * pruner.space.budget.prunable)
    ids = tokens()
    assert torch.isfinite(model(input_ids=ids, labels=ids).loss)


def test_masks_give_experts_their_weights_back() -> None:
    model = tiny_model("mixtral")
    groups = find_groups(model.config)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    masks = Masks(model, groups)
    masks.set({group.name: range(group.least, group.units) for group in groups})
    assert not torch.equal(
        model.state_dict()["model.layers.0.mlp.experts.down_proj"], before["model.layers.0.mlp.experts.down_proj"]
    )
    masks.remove()
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("variant", MIXTURES)
def test_reap_is_the_mean_of_gate_value_and_size_of_the_output(variant: str) -> None:
    model = tiny_model(variant).train()
    groups = [group for group in find_groups(model.config) if group.kind == "expert"]
    stacks = [model.get_submodule(f"{group.name.rpartition('.')[0]}.experts") for group in groups]
    calls: list[list[tuple[Tensor, ...]]] = [[] for _ in stacks]
    for stack, seen in zip(stacks, calls, strict=True):
        stack.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args))
    scorer = make_scorer(criteria.get("reap"), model, groups, power=2, normalize=False, seed=0)
    for seed in (0, 1):  # two micro-batches
        model(input_ids=tokens(rows=3, seed=seed))
    found = scorer.collect()
    scorer.close()
    for group, stack, seen in zip(groups, stacks, calls, strict=True):
        routed: list[list[float]] = [[] for _ in range(group.units)]
        sizes: list[float] = []
        for x, chosen, gates in seen[::2]:  # the scorer's own calls are between
            for token in range(len(x)):
                for expert, gate in zip(chosen[token].tolist(), gates[token].tolist(), strict=True):
                    left, right = (stack.gate_up_proj[expert].double() @ x[token].double()).chunk(2)
                    size = (stack.down_proj[expert].double() @ (stack.act_fn(left) * right)).norm().item()
                    routed[expert].append(gate * size)
                    sizes.append(size)
        expected = torch.tensor([sum(each) / max(1, len(each)) for each in routed], dtype=torch.float64)
        torch.testing.assert_close(found[group.name], expected, rtol=1e-5, atol=0)
        plain = torch.tensor([sum(each) / len(sizes) for each in routed], dtype=torch.float64)
        assert not torch.allclose(found[group.name], plain, rtol=1e-2)  # the control: a mean over all tokens


@pytest.mark.parametrize("variant", MIXTURES)
def test_reap_prunes_whole_experts_masked_and_cut_alike(variant: str) -> None:
    plans, outputs = [], []
    for shrink in (True, False):
        model = with_lora(tiny_model(variant)).train()
        pruner = Pruner(model, LoRAPruneConfig(criterion="reap", ratio=0.4, shrink=shrink))
        assert {group.kind for group in pruner.groups} == {"expert"}
        for progress in (0.5, 1.0):
            with torch.no_grad():
                model(input_ids=tokens(rows=4))  # the second time with fewer experts
            pruner.score()
            pruner.remove(progress)
        pruner.finish()
        assert pruner.ratio() == pytest.approx(0.4, abs=0.15)
        plans.append(pruner.plan)
        outputs.append(output(model, variant))
    assert plans[0] == plans[1]
    assert relative(outputs[0], outputs[1]) < 2e-5
    assert relative(output(with_lora(tiny_model(variant)), variant), outputs[0]) > 1e-3  # the control: the dense model


@pytest.mark.parametrize(("kinds", "variant"), [("auto", "llama"), ("attention", "mixtral")])
def test_reap_refuses_what_is_no_expert(kinds: str, variant: str) -> None:
    model = with_lora(tiny_model(variant))
    with pytest.raises(ConfigError, match="--criterion reap: it scores whole experts, and no units of kind attention"):
        Pruner(model, LoRAPruneConfig(criterion="reap", kinds=kinds))
