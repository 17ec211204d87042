"""A run with --depth leaves a stock checkpoint with fewer layers that computes what the masked dense model computes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedModel

from loraprune import pipeline
from loraprune.commands.plan import dry_run
from loraprune.config.commands import PlanConfig
from loraprune.errors import ConfigError, LoraPruneError, VerificationError
from loraprune.evaluation.precision import difference, logits_of
from loraprune.evaluation.tasks import probe_of
from loraprune.export.padded import write_padded
from loraprune.families import find_groups
from loraprune.families.depth import gone_layers, numbered_as_before
from loraprune.models.empty import empty_model
from loraprune.models.loading import load_model
from loraprune.models.opening import load_config
from loraprune.plan import Plan
from loraprune.pruning.verify import check_units, masked_logits, unit_sums
from tests.pipeline.cases import check_loads_anywhere, count, one_step, prune_config, read_report
from tests.pipeline.test_resume import results, resumed, stopped
from tests.samples import byte_tokenizer, save_tiny, write_text
from tests.tiny import COMMON, VARIANTS, model_type

GONE = "model.layers.1"
SHALLOW: dict[str, Any] = {"depth": True, "allocation": "balanced", "criterion": "gate", "ratio": 0.5, "steps": 8}
MEASURED: dict[str, Any] = {"allocation": "measured", "schedule": "oneshot", "criterion": "wanda", "ratio": 0.3}
BY_NUMBER: dict[str, Any] = {"depth": False, "layers": 3, "schedule": "oneshot", "allocation": "auto"}
"""with the default ratio, as a second target is refused"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a model of four layers and a text; layer 1 is nearly worthless."""
    root = tmp_path_factory.mktemp("depth")
    save_tiny(root / "model", num_hidden_layers=4)
    weaken(root / "model")
    write_text(root / "text.txt", 200)
    return root


def weaken(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name in tensors:
        if name.startswith(GONE) and ("o_proj" in name or "down_proj" in name):
            tensors[name] = tensors[name] * 1e-3
    save_file(tensors, path, metadata={"format": "pt"})


def shallow(inputs: Path, output: Path, **changes: Any) -> Path:
    pipeline.prune(prune_config(inputs, output, **(SHALLOW | changes)))
    return output


@pytest.fixture(scope="module")
def strong(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the same with larger weights: without any other layer the outputs change a lot."""
    root = tmp_path_factory.mktemp("strong")
    save_tiny(root / "model", num_hidden_layers=4, initializer_range=0.3)
    weaken(root / "model")
    write_text(root / "text.txt", 200)
    return root


@pytest.fixture(scope="module")
def pruned(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shallow(inputs, tmp_path_factory.mktemp("shallow") / "out")


def check_shallow(folder: Path, dense: Path, *, ratio: float = 0.5) -> None:
    """Check that layer 1 went, that the ratio is met, and that the formula counts what the file holds."""
    config, report = json.loads((folder / "config.json").read_text()), read_report(folder)
    assert config["num_hidden_layers"] == 3
    assert Plan.read(folder).kept[f"{GONE}.mlp"] == ()
    assert report["units"][f"{GONE}.self_attn"]["kept"] == 0
    heads, width = config["num_attention_heads"], config["intermediate_size"]
    head, hidden = 8, 32
    layer = (2 * heads + 2 * config["num_key_value_heads"]) * head * hidden + 3 * hidden * width + 2 * hidden
    assert count(folder) == 3 * layer + 2 * config["vocab_size"] * hidden + hidden == report["parameters"]["pruned"]
    assert abs(report["ratio_reached"] - ratio) <= one_step(folder, dense)
    assert max(report["verification"]["masked_vs_sliced"], report["verification"]["sliced_vs_reloaded"]) <= 1e-4


def test_a_worthless_layer_is_gone_and_the_rest_loads_without_this_package(inputs: Path, pruned: Path) -> None:
    check_shallow(pruned, inputs / "model")
    check_loads_anywhere(pruned)


@pytest.mark.parametrize(
    "changes",
    [
        {"shrink": False},
        {"checkpointing": True, "dropout": 0.0},
        {"compensate": True, "criterion": "taylor"},
        {"local": 3},
        {"compensate": True, "local": 2, "shrink": False},
        {"steps": 0, "rows": 32},
        {"teacher": "copy"},
    ],
    ids=str,
)
def test_with_other_options_too(changes: dict[str, Any], inputs: Path, tmp_path: Path) -> None:
    check_shallow(shallow(inputs, tmp_path / "out", **changes), inputs / "model")


@pytest.mark.parametrize(
    "changes",
    [
        MEASURED | {"end_to_end": 4},
        MEASURED | {"shrink": False, "compensate": True, "end_to_end": 4},
        BY_NUMBER | {"compensate": True, "local": 2},
    ],
    ids=["measured", "measured-masked", "by-number"],
)
def test_calibration_rows_choose_the_layer(changes: dict[str, Any], strong: Path, tmp_path: Path) -> None:
    folder = shallow(strong, tmp_path / "out", **changes)
    check_shallow(folder, strong / "model", ratio=0.25 if "layers" in changes else 0.3)
    check_loads_anywhere(folder)


def test_a_run_whose_layer_is_gone_is_resumed(strong: Path, tmp_path: Path) -> None:
    options = SHALLOW | BY_NUMBER | {"compensate": True, "cooldown": 0.6}
    whole = shallow(strong, tmp_path / "whole", **options)
    stopped(strong, tmp_path / "out", 6, **options)
    resumed(strong, tmp_path / "out", **options)
    assert results(tmp_path / "out") == results(whole)


def test_a_plan_that_names_another_layer_and_layers_in_another_order_are_seen(inputs: Path, pruned: Path) -> None:
    def dense() -> PreTrainedModel:
        return load_model(str(inputs / "model"), device=torch.device("cpu"), dtype=torch.float32)

    def exchanged(name: str) -> str:
        return name.replace(".1.", ".x.").replace(".2.", ".1.").replace(".x.", ".2.")

    plan, groups = Plan.read(pruned), find_groups(dense().config)
    model = load_model(str(pruned), device=torch.device("cpu"), dtype=torch.float32)
    expected = logits_of(model, probe_of(model))
    saved = load_file(pruned / "model.safetensors")
    counts = {name: len(kept) for name, kept in plan.kept.items()}
    for tensors, same in ((saved, True), ({exchanged(name): value for name, value in saved.items()}, False)):
        found = masked_logits(dense(), numbered_as_before(tensors, counts), groups, plan, probe_of(model))
        assert (difference(found, expected) <= 1e-5) is same
    other = Plan(plan.units, {name: plan.kept[exchanged(name)] for name in plan.kept})
    sums = unit_sums(dense(), groups, plan=plan)
    check_units(unit_sums(dense(), groups, plan=plan), sums)
    with pytest.raises(VerificationError, match="does not hold the units"):
        check_units(unit_sums(dense(), groups, plan=other), sums)


def test_the_result_is_pruned_once_more(pruned: Path, inputs: Path, tmp_path: Path) -> None:
    pipeline.prune(prune_config(inputs, tmp_path / "out", model=str(pruned), ratio=0.3, steps=3, round=4))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_hidden_layers"] == 3
    assert abs(read_report(tmp_path / "out")["ratio_reached"] - 0.3) <= one_step(tmp_path / "out", pruned)


def test_saved_scores_choose_the_layer(pruned: Path, inputs: Path, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = {
        name: torch.rand(units, generator=generator) * (1e-4 if name.startswith(GONE) else 1)
        for name, units in Plan.read(pruned).units.items()
    }
    save_file(scores, tmp_path / "scores.safetensors")
    check_shallow(shallow(inputs, tmp_path / "out", scores=str(tmp_path / "scores.safetensors")), inputs / "model")


def save_variant(variant: str, folder: Path) -> Path:
    """Write a random model of four layers, and its tokenizer."""
    tokenizer = byte_tokenizer()
    values = COMMON | VARIANTS[variant] | {"num_hidden_layers": 4, "vocab_size": len(tokenizer) + 8}
    config = CONFIG_MAPPING[model_type(variant)](**values)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("variant", ["mistral", "qwen2", "smollm3", "gemma", "llama-tied"])
def test_other_families_lose_layers_exactly(variant: str, inputs: Path, tmp_path: Path) -> None:
    model = save_variant(variant, tmp_path / "model")
    weaken(model)
    config = prune_config(inputs, tmp_path / "out", **(SHALLOW | {"model": str(model), "ratio": 0.5, "steps": 3}))
    report = pipeline.prune(config)
    gone = gone_layers({name: len(kept) for name, kept in report.plan.kept.items()})
    assert GONE in gone
    left = [place for place in range(4) if f"model.layers.{place}" not in gone]
    assert report.values["ratio_reached"] == pytest.approx(0.5, abs=0.04)
    saved = AutoConfig.from_pretrained(tmp_path / "out")
    dense = AutoConfig.from_pretrained(model)
    assert saved.num_hidden_layers == len(left)
    for key in ("layer_types", "no_rope_layers"):
        if lists := getattr(dense, key, None):
            assert getattr(saved, key) == [lists[place] for place in left]


def test_a_dry_run_counts_what_goes_with_layers(inputs: Path) -> None:
    config = PlanConfig(model=str(inputs / "model"), depth=True, allocation="balanced", ratio=0.7)
    values = dry_run(config).values
    stock = load_config(str(inputs / "model"))
    for key, value in values["shapes"].items():
        setattr(stock, key, value)
    stock.head_dim = 8
    assert values["shapes"]["num_hidden_layers"] < 4
    assert values["parameters"]["pruned"] == empty_model(stock).num_parameters()


def test_a_dry_run_counts_a_number_of_layers(inputs: Path) -> None:
    values = dry_run(PlanConfig(model=str(inputs / "model"), layers=3, ffn=32)).values
    assert (values["shapes"]["num_hidden_layers"], values["shapes"]["intermediate_size"]) == (3, 32)


def test_padding_says_that_a_layer_is_gone(pruned: Path, tmp_path: Path) -> None:
    model = load_model(str(pruned), device=torch.device("cpu"), dtype=torch.float32)
    with pytest.raises(LoraPruneError, match=rf"cannot restore a removed layer such as .*{GONE}"):
        write_padded(model, Plan.read(pruned), tmp_path / "padded", dtype=torch.float32)


@pytest.mark.parametrize(
    ("variant", "words"),
    [
        ("llama-attention_bias", "o_proj' has a bias"),
        ("gemma2", "not known to be interchangeable"),
        ("gpt2", "not known to be interchangeable"),
        ("mixtral", "not known to be interchangeable"),
    ],
)
def test_models_whose_layers_cannot_go_are_refused(variant: str, words: str, inputs: Path, tmp_path: Path) -> None:
    save_variant(variant, tmp_path / "model")
    with pytest.raises(ConfigError, match=words):
        shallow(inputs, tmp_path / "out", model=str(tmp_path / "model"))
    assert not (tmp_path / "out").exists()


def test_half_of_a_layer_cannot_stay(inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="stay"):
        shallow(inputs, tmp_path / "out", kinds="ffn", ratio=0.3)


@pytest.mark.parametrize(
    "changes", [{"allocation": "uniform"}, {"heads": 2, "ffn": 32}, {"sparsity": "2:4"}, {"rounds": 2}], ids=str
)
def test_options_that_choose_no_layers_are_refused(changes: dict[str, Any], inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="depth"):
        prune_config(inputs, tmp_path / "out", **(SHALLOW | changes))
