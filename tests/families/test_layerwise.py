"""Widths of its own in every layer: saved with modelling code, loaded with and without this package, pruned once more."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from loraprune.config.pruning import LoRAPruneConfig
from loraprune.errors import CheckpointError, PlanError
from loraprune.export.padded import write_padded
from loraprune.families import find_groups
from loraprune.models.adapters import merge_lora
from loraprune.models.compat import recompute_activations
from loraprune.models.layerwise import modeling_loraprune
from loraprune.models.loading import from_pretrained
from loraprune.models.saving import round_weights_, storable_kinds
from loraprune.plan import Plan
from loraprune.pruning.masking import Masks
from loraprune.pruning.surgery import check_groups, slice_
from loraprune.pruning.target import groups_in_play
from tests.families.uneven import LAYERS, SAME, cut, every_variant, groups_of, save
from tests.tiny import (
    VARIANTS,
    choose,
    logits,
    model_type,
    relative,
    tiny_config,
    tiny_model,
    tokens,
    uneven_plan,
    uniform_plan,
    with_lora,
)


def whole_but(kinds: Sequence[str], plan: Plan) -> Plan:
    """Return a plan that keeps everything but units of some kinds."""
    ffn = {name for name in plan.units if not re.search("attn|attention", name)}
    free = (ffn if "ffn" in kinds else set()) | (plan.units.keys() - ffn if "attention" in kinds else set())
    return Plan(plan.units, {n: kept if n in free else tuple(range(plan.units[n])) for n, kept in plan.kept.items()})


def edit_record(folder: Path, change: Any) -> None:
    path = folder / "config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    change(values["loraprune"])
    path.write_text(json.dumps(values), encoding="utf-8")


@pytest.fixture(scope="module")
def uneven(variant: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[PreTrainedModel, Path]:
    """Return a model of a variant with widths of its own in every layer, and its folder; a test changes neither."""
    folder = tmp_path_factory.mktemp(variant)
    return cut(variant, uneven_plan(groups_of(variant)), folder), folder


@every_variant
def test_uneven_widths_survive_the_folder_and_being_saved_again(variant: str, tmp_path: Path) -> None:
    adapted = with_lora(tiny_model(variant, layers=LAYERS))
    groups = groups_of(variant)
    plan = uneven_plan(groups)
    masks = Masks(adapted, groups)
    masks.set(plan.kept)
    masked = logits(adapted, tokens())
    masks.remove()
    slice_(adapted, groups, plan.kept)
    sliced = merge_lora(adapted)
    save(sliced, tmp_path / "once", config=tiny_config(variant, layers=LAYERS), groups=groups, plan=plan)
    once = from_pretrained(tmp_path / "once")
    once.save_pretrained(tmp_path / "again")
    again = from_pretrained(tmp_path / "again")
    assert once.config.model_type == f"loraprune_{model_type(variant)}"
    assert relative(masked, logits(once, tokens())) < SAME
    assert torch.equal(logits(once, tokens()), logits(again, tokens()))
    assert once.num_parameters() == again.num_parameters() == sliced.num_parameters()
    for folder in (tmp_path / "once", tmp_path / "again"):
        shipped = (folder / "modeling_loraprune.py").read_bytes()
        assert shipped == Path(str(modeling_loraprune.__file__)).read_bytes()


@every_variant
def test_generation_agrees_with_the_sliced_model_whatever_the_cache(
    variant: str, uneven: tuple[PreTrainedModel, Path]
) -> None:
    sliced, folder = uneven
    loaded: Any = from_pretrained(folder)
    prompt = tokens(length=8)
    settings = {
        "attention_mask": torch.ones_like(prompt),
        "max_new_tokens": 16,
        "do_sample": False,
        "min_new_tokens": 16,
    }
    expected = sliced.generate(prompt, use_cache=False, **settings)  # type: ignore[operator]
    caches: list[dict[str, Any]] = [{"use_cache": False}, {"use_cache": True}]
    if variant != "falcon-alibi":  # transformers itself has no static cache with ALiBi
        caches.append({"cache_implementation": "static", "disable_compile": True})
    for cache in caches:
        assert torch.equal(loaded.generate(prompt, **settings, **cache), expected)


@every_variant
def test_recomputed_activations_give_the_gradients_of_kept_ones(
    variant: str, uneven: tuple[PreTrainedModel, Path]
) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = from_pretrained(uneven[1]).train()
        if checkpointing:
            recompute_activations(model)
        model(input_ids=tokens(), labels=tokens(), use_cache=False).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    torch.testing.assert_close(gradients[0], gradients[1])


@every_variant
def test_half_precision_is_kept_and_computes_nearly_the_same(
    variant: str, uneven: tuple[PreTrainedModel, Path], tmp_path: Path
) -> None:
    sliced = copy.deepcopy(uneven[0])
    round_weights_(sliced, torch.bfloat16)
    half = from_pretrained(uneven[1], dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    assert relative(logits(sliced, tokens()), logits(half, tokens()).float()) < 0.1
    half.save_pretrained(tmp_path / "half")
    again = from_pretrained(tmp_path / "half", dtype="auto")
    assert again.dtype == torch.bfloat16
    assert torch.equal(logits(half, tokens()), logits(again, tokens()))


@every_variant
def test_a_pruned_model_is_pruned_once_more_with_adapters(
    variant: str, uneven: tuple[PreTrainedModel, Path], tmp_path: Path
) -> None:
    model = from_pretrained(uneven[1])
    config, groups = copy.deepcopy(model.config), find_groups(model.config)
    check_groups(model, groups)
    kept = {g.name: tuple(range(min(g.units // 2, g.units - g.least), g.units)) for g in groups}
    plan = Plan({group.name: group.units for group in groups}, kept)
    adapted = with_lora(model)
    masks = Masks(adapted, groups)
    masks.set(plan.kept)
    masked = logits(adapted, tokens())
    masks.remove()
    slice_(adapted, groups, plan.kept)
    save(merge_lora(adapted), tmp_path / "second", config=config, groups=groups, plan=plan)
    assert relative(masked, logits(from_pretrained(tmp_path / "second"), tokens())) < SAME
    with pytest.raises(PlanError, match="differed in width already"):
        write_padded(from_pretrained(tmp_path / "second"), plan, tmp_path / "padded", dtype=torch.float32)


@pytest.mark.parametrize("variant", [variant for variant in VARIANTS if variant != "bloom"])
def test_layers_cut_to_equal_widths_are_a_stock_model_again(variant: str, tmp_path: Path) -> None:
    storable = storable_kinds(tiny_config(variant, layers=LAYERS), groups_of(variant))
    cut(variant, whole_but(storable, uneven_plan(groups_of(variant))), tmp_path / "first")
    model = from_pretrained(tmp_path / "first")
    config, groups = copy.deepcopy(model.config), find_groups(model.config)
    plan = whole_but(storable, choose(groups, {group.name: group.least for group in groups}))
    slice_(model, groups, plan.kept)
    save(model, tmp_path / "second", config=config, groups=groups, plan=plan)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "second")
    assert not hasattr(stock.config, "loraprune")
    assert not hasattr(stock.config, "auto_map")
    assert torch.equal(logits(model, tokens()), logits(stock, tokens()))


@pytest.mark.parametrize("variant", ["gpt2", "opt", "falcon"])
def test_heads_that_are_gone_need_the_code_also_when_channels_go_later(variant: str, tmp_path: Path) -> None:
    cut(variant, whole_but(("attention",), uniform_plan(groups_of(variant), 3, 40)), tmp_path / "first")
    model = from_pretrained(tmp_path / "first")
    config, groups = copy.deepcopy(model.config), find_groups(model.config)
    in_play = groups_in_play(config, groups, LoRAPruneConfig(kinds="ffn"))
    plan = uniform_plan(in_play, 3, 40)
    slice_(model, in_play, plan.kept)
    save(model, tmp_path / "second", config=config, groups=in_play, plan=plan)
    again = from_pretrained(tmp_path / "second")
    assert again.config.model_type == f"loraprune_{variant}"
    assert torch.equal(logits(model, tokens()), logits(again, tokens()))


@pytest.mark.parametrize("variant", ["llama-attention_bias", "gemma2", "gemma3_text"])
def test_equal_widths_that_no_configuration_holds_need_the_code_too(variant: str, tmp_path: Path) -> None:
    sliced = cut(variant, uniform_plan(groups_of(variant), 3, 40), tmp_path)
    loaded = from_pretrained(tmp_path)
    assert loaded.config.model_type.startswith("loraprune_")
    assert torch.equal(logits(sliced, tokens()), logits(loaded, tokens()))


FRESH = """
import json, pathlib, sys
sys.modules["loraprune"] = None  # an import of it fails, installed or not
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM
worst = {}
for folder in pathlib.Path(sys.argv[1]).iterdir():
    expected = load_file(folder / "expected.pt")
    try:
        AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
    except ValueError:
        pass
    else:
        raise AssertionError(f"{folder} loads without its code")
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    found = model(input_ids=expected["tokens"]).logits
    worst[folder.name] = ((found - expected["logits"]).abs().max() / expected["logits"].abs().max()).item()
    base = AutoModel.from_pretrained(folder, trust_remote_code=True)
    hidden = [m(input_ids=expected["tokens"]).last_hidden_state for m in (base, model.base_model)]
    assert (hidden[0] == hidden[1]).all(), folder
print(json.dumps(worst))
"""


def test_a_fresh_process_without_this_package_loads_every_family_with_the_flag_only(tmp_path: Path) -> None:
    variants = list({model_type(variant): variant for variant in VARIANTS}.values())
    for variant in variants:
        model = cut(variant, uneven_plan(groups_of(variant)), tmp_path / variant)
        save_file({"tokens": tokens(), "logits": logits(model, tokens())}, tmp_path / variant / "expected.pt")
    run = subprocess.run(
        [sys.executable, "-c", FRESH, str(tmp_path)], capture_output=True, text=True, timeout=240, check=False
    )
    assert run.returncode == 0, run.stderr
    worst = json.loads(run.stdout.splitlines()[-1])
    assert set(worst) == set(variants)
    assert {name: found for name, found in worst.items() if not found < SAME} == {}


def test_the_layers_of_phi3_follow_the_attention_kernel_of_the_model(tmp_path: Path) -> None:
    sliced = cut("phi3", uneven_plan(groups_of("phi3")), tmp_path)
    for model in (sliced, from_pretrained(tmp_path), copy.deepcopy(sliced)):
        model.set_attn_implementation("eager")
        layer: Any = model.get_submodule("model.layers.0.self_attn")
        assert layer.config._attn_implementation == "eager"
        assert layer.config.num_attention_heads != model.config.num_attention_heads
        assert layer.config._shared is model.config


def test_a_new_model_of_a_record_starts_from_random_weights_of_its_sizes(tmp_path: Path) -> None:
    cut("qwen2", uneven_plan(groups_of("qwen2")), tmp_path)
    config = from_pretrained(tmp_path).config
    model = AutoModelForCausalLM.from_config(config)
    check_groups(model, find_groups(config))
    weight = model.get_parameter("model.layers.0.mlp.up_proj.weight")
    assert weight.std().item() == pytest.approx(config.initializer_range, rel=0.1)
    assert torch.isfinite(logits(model, tokens())).all()


WRONG_RECORDS: dict[str, tuple[Any, str]] = {
    "no such module": (
        lambda r: r["shapes"].update({"layers.9.mlp.up_proj.weight": [1, 64]}),
        "no module 'layers.9.mlp.up_proj'",
    ),
    "widths of two layers swapped": (
        lambda r: r["shapes"].update({"layers.0.mlp.up_proj.weight": r["shapes"]["layers.1.mlp.up_proj.weight"]}),
        "wrong shape for model.layers.0.mlp.up_proj",
    ),
    "wider than dense": (lambda r: r["shapes"].update({"layers.0.mlp.up_proj.weight": [97, 64]}), "does not fit"),
    "no width": (lambda r: r["shapes"].update({"layers.0.mlp.up_proj.weight": [0, 64]}), "does not fit"),
    "words": (lambda r: r["shapes"].update({"layers.0.mlp.up_proj.weight": ["9", 64]}), "does not describe"),
    "a part missing": (lambda r: r.pop("shapes"), "shapes"),
    "another format": (lambda r: r.update(format=1), "format 1"),
    "a method": (lambda r: r["attributes"].update({"layers.0.forward": 1}), "not an integer"),
    "out of the model": (lambda r: r["shapes"].update({"..": [1, 1]}), "does not describe"),
}


@pytest.mark.parametrize("what", WRONG_RECORDS)
def test_a_record_that_does_not_describe_the_model_is_refused(what: str, tmp_path: Path) -> None:
    change, message = WRONG_RECORDS[what]
    cut("llama", uneven_plan(groups_of("llama")), tmp_path)
    edit_record(tmp_path, change)
    with pytest.raises(CheckpointError, match=message) as caught:
        from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["LayerwiseLlamaFoCausalLM", "LayerwisePreTrainedTokenizerFast", "LlamaConfig", "nothing"]
)
def test_a_class_that_is_not_there_is_an_attribute_error(name: str) -> None:
    with pytest.raises(AttributeError):
        getattr(modeling_loraprune, name)
