"""Query heads as units: what every family with grouped-query attention promises of them."""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from loraprune.families import find_groups
from loraprune.families.query_heads import as_asked, by_query_heads, query_heads
from loraprune.groups import Group, kept_entries
from loraprune.models.adapters import find_module, merge_lora
from loraprune.models.layerwise.modeling_loraprune import TYPE_PREFIX
from loraprune.models.loading import from_pretrained
from loraprune.models.saving import save_model, storable_counts, storable_kinds
from loraprune.plan import Plan
from loraprune.pruning.surgery import check_groups, slice_
from loraprune.pruning.target import measure_budget
from loraprune.pruning.verify import masked_logits
from tests.families.promises import SAME, masked
from tests.tiny import EVERY, VARIANTS, logits, output, relative, tiny_config, tiny_model, tokens, with_lora

GROUPED = [
    variant for variant in VARIANTS if any(query_heads(group) > 1 for group in find_groups(tiny_config(variant)))
]
UNSTORABLE = ["phi-qk_layernorm"]
every_grouped = pytest.mark.parametrize("variant", GROUPED, scope="module")


def single_heads(config: PreTrainedConfig) -> tuple[Group, ...]:
    """Return the groups of a model with single query heads as units."""
    return as_asked(find_groups(config), "query,ffn", depth=False)


def plan_of(groups: tuple[Group, ...], *, each: int | list[int] = 1, seed: int = 0) -> Plan:
    """Return a plan that keeps `each` query heads of every key-value head, drawn at random, in all layers or layer by layer."""
    draw, layers = random.Random(seed), 0
    kept: dict[str, Sequence[int]] = {}
    for group in groups:
        if group.kind != "query":
            kept[group.name] = range(group.units)
            continue
        wanted = each if isinstance(each, int) else each[layers]
        size, layers = group.units // group.parts, layers + 1
        kept[group.name] = sorted(
            part * size + unit for part in range(group.parts) for unit in draw.sample(range(size), wanted)
        )
    return Plan.full(groups).keeping(kept)


def two_key_values(variant: str, *, layers: int = 2) -> PreTrainedModel:
    """Return a tiny model with four query heads for each of two key-value heads."""
    config = tiny_config(variant, layers=layers)
    config.num_key_value_heads = 2
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config).eval()
    model.config.architectures = [type(model).__name__]
    return model


def cut(model: PreTrainedModel, folder: Path, plan: Plan, groups: tuple[Group, ...]) -> None:
    """Slice a model, and save it."""
    config, counts = copy.deepcopy(model.config), plan.counts()
    slice_(model, groups, plan.kept)
    save_model(model, folder, config=config, groups=groups, counts=counts)


def test_all_decoders_with_separate_or_leading_queries_have_them() -> None:
    kinds = {variant.partition("-")[0] for variant in GROUPED}
    assert kinds == {
        "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "olmo2", "smollm3", "phi", "starcoder2",
        "cohere", "mixtral", "qwen2_moe", "qwen3_moe", "granite",
    }  # fmt: skip
    assert "llama-mha" not in GROUPED  # a query head is a unit there anyway


@every_grouped
def test_masked_is_cut_is_saved_is_reloaded(variant: str, tmp_path: Path) -> None:
    adapted, groups = with_lora(tiny_model(variant)), single_heads(tiny_config(variant))
    check_groups(adapted, groups)
    plan = plan_of(groups)
    reference = masked(variant, adapted, groups, plan)
    wrong = masked(variant, adapted, groups, plan_of(groups, seed=1))
    budget, before = measure_budget(adapted, groups), tiny_model(variant).num_parameters()
    slice_(adapted, groups, plan.kept)
    sliced = merge_lora(adapted)
    assert relative(reference, output(sliced, variant)) < SAME
    assert relative(reference, wrong) > 1e-2  # the control
    assert before - sliced.num_parameters() == budget.prunable - budget.kept(plan.counts())
    save_model(sliced, tmp_path, config=tiny_config(variant), groups=groups, counts=plan.counts())
    stock = variant not in UNSTORABLE
    assert stock == bool(storable_counts(tiny_config(variant), groups)(plan.counts()))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path) if stock else from_pretrained(tmp_path)
    assert relative(reference, output(loaded, variant)) < SAME
    if stock:
        assert type(loaded).__module__.startswith("transformers.")
        assert (loaded.config.num_attention_heads, loaded.config.num_key_value_heads) == (4, 4)
        assert loaded.config.head_dim == 8
    same = masked_logits(tiny_model(variant), loaded.state_dict(), groups, plan, EVERY[variant].inputs())
    assert relative(reference, same) < SAME


@every_grouped
def test_other_numbers_of_them_in_every_layer_need_modelling_code_and_are_cut_again(
    variant: str, tmp_path: Path
) -> None:
    model = two_key_values(variant, layers=3)
    groups = single_heads(model.config)
    plan = plan_of(groups, each=[1, 3, 4])
    reference = masked(variant, model, groups, plan)
    cut(model, tmp_path / "once", plan, groups)
    once = from_pretrained(tmp_path / "once")
    assert once.config.model_type.startswith(TYPE_PREFIX)
    assert relative(reference, output(once, variant)) < SAME
    left = find_groups(once.config)
    check_groups(once, left)
    assert [(group.units, query_heads(group)) for group in left if group.kind == "attention"] == [
        (2, 1),
        (2, 3),
        (2, 4),
    ]
    # Key-value heads go from what is left, with the query heads that these have.
    again = Plan.full(left).keeping({g.name: (1,) if g.kind == "attention" else range(g.units) for g in left})
    expected, before = masked(variant, once, left, again), output(once, variant)
    cut(once, tmp_path / "again", again, left)
    twice = from_pretrained(tmp_path / "again")
    assert relative(expected, output(twice, variant)) < SAME
    assert relative(expected, before) > 1e-2  # the control
    assert [query_heads(group) for group in find_groups(twice.config) if group.kind == "attention"] == [1, 3, 4]


def unchecked(groups: tuple[Group, ...], kept: Mapping[str, Sequence[int]]) -> Plan:
    """Return a plan that may keep all query heads of one key-value head, and none of another."""
    return Plan({group.name: group.units for group in groups}, {n: tuple(k) for n, k in kept.items()})


def test_unequal_numbers_of_one_total_compute_something_else() -> None:
    model = two_key_values("llama")
    groups = single_heads(model.config)
    good = plan_of(groups, each=2)
    odd = {name: (0, 1, 2, 4) if name in good.parts else units for name, units in good.kept.items()}
    expected = masked("llama", model, groups, unchecked(groups, odd))
    slice_(model, groups, odd)
    assert relative(expected, logits(model, tokens())) > 1e-2  # which is why Plan refuses it: tests/test_plan.py


def test_a_llama_with_head_counts_that_it_refuses_becomes_a_mistral(tmp_path: Path) -> None:
    model = two_key_values("llama")
    groups = single_heads(model.config)
    plan = plan_of(groups, each=3)
    reference = masked("llama", model, groups, plan)
    cut(model, tmp_path, plan, groups)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert (loaded.config.model_type, loaded.config.num_attention_heads) == ("mistral", 6)
    assert relative(reference, logits(loaded, tokens())) < SAME


def test_query_heads_of_a_fused_projection_come_first_and_keys_move_up(tmp_path: Path) -> None:
    dense, model = two_key_values("phi3"), two_key_values("phi3")
    groups = single_heads(model.config)
    plan = plan_of(groups, each=1, seed=3)
    cut(model, tmp_path, plan, groups)
    group, path = groups[0], "model.layers.0.self_attn.qkv_proj"
    rows = kept_entries(96, group.spans[:1], group.units, plan.kept[group.name])
    fused = find_module(AutoModelForCausalLM.from_pretrained(tmp_path), path)
    assert torch.equal(fused.weight, find_module(dense, path).weight[rows])
    assert len(rows) == 2 * 8 + 2 * 16  # a query head, a key and a value for each of two


def test_what_a_stock_checkpoint_can_hold_is_known_beforehand() -> None:
    for variant in GROUPED:
        config = tiny_config(variant)
        assert ("query" in storable_kinds(config, single_heads(config))) == (variant not in UNSTORABLE), variant
    group = by_query_heads(find_groups(two_key_values("qwen2").config)[0])
    storable = storable_counts(two_key_values("qwen2").config, [group])
    assert [count for count in range(1, 9) if storable({group.name: count})] == [2, 4, 6, 8]
