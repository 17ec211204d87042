"""Quantised weights are read, scored, cut and merged like the numbers that they stand for."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from loraprune import LoRAPruneConfig
from loraprune.api import attach_lora
from loraprune.errors import ConfigError, VerificationError
from loraprune.evaluation.precision import difference
from loraprune.families import find_groups
from loraprune.models.adapters import cuts, find_module, linear_paths, merge_lora
from loraprune.models.auto_classes import auto_class
from loraprune.models.loading import load_with_head
from loraprune.models.quantised import (
    Quantisation,
    cut_,
    dequantise_,
    parts,
    prepare_,
    stored,
    write_,
    zero_,
)
from loraprune.models.quantised.forms import Nf4Blocks
from loraprune.pruning.surgery import slice_
from loraprune.pruning.verify import check_units, masked_logits, unit_sums
from loraprune.scoring import make_scorer
from loraprune.scoring.criteria import criteria
from loraprune.training.footprint import bytes_per_weight
from tests.tiny import EVERY, logits, relative, tiny_config, tiny_model, token_inputs, tokens, uniform_plan, with_lora

bitsandbytes = pytest.importorskip("bitsandbytes")

TORCHAO = pytest.mark.skipif(find_spec("torchao") is None, reason="torchao is not installed")
KINDS = ("8bit", "4bit", pytest.param("int8", marks=TORCHAO))
VARIANTS = ("llama", "qwen2", "gpt2")
"""grouped queries; with biases; weights stored the other way round"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    for variant in VARIANTS:
        tiny_model(variant).save_pretrained(root / variant)
    return {variant: root / variant for variant in VARIANTS}


def load(folder: Path, kind: str) -> PreTrainedModel:
    groups = find_groups(tiny_model(folder.name).config)
    how = Quantisation(kind, frozenset(linear_paths(groups)))
    return load_with_head(str(folder), None, device=torch.device("cpu"), dtype=torch.float32, quantisation=how)[0]


def linear4bit(weight: torch.Tensor) -> Any:
    layer = bitsandbytes.nn.Linear4bit(
        *reversed(weight.shape), bias=False, quant_type="nf4", compute_dtype=torch.float32
    )
    layer.weight = bitsandbytes.nn.Params4bit(weight.clone(), requires_grad=False, quant_type="nf4", module=layer).to(
        "cpu"
    )
    return layer


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_masked_equals_sliced_and_merged(variant: str, kind: str, folders: dict[str, Path]) -> None:
    model = load(folders[variant], kind)
    dense = load(folders[variant], kind)
    before = logits(model, tokens())
    dequantise_(dense)
    assert relative(before, logits(dense, tokens())) < 1e-5
    assert type(find_module(dense, linear_paths(find_groups(dense.config))[0])) is type(
        find_module(tiny_model(variant), linear_paths(find_groups(dense.config))[0])
    )
    groups = find_groups(model.config)
    plan, other = uniform_plan(groups, 2, 40), uniform_plan(groups, 2, 40, seed=1)
    adapted = with_lora(model)
    smaller = slice_(adapted, groups, plan.kept)
    sums = unit_sums(adapted, smaller)
    check_units(unit_sums(dense, groups, plan=plan), sums, rounded=kind == "4bit")
    with pytest.raises(VerificationError, match="does not hold the units"):
        check_units(unit_sums(dense, groups, plan=other), sums, rounded=kind == "4bit")
    sliced = logits(adapted, tokens())
    merged = merge_lora(adapted)
    assert relative(sliced, logits(merged, tokens())) < 1e-5
    assert getattr(merged.config, "quantization_config", None) is None
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.float32}
    masked = masked_logits(dense, merged.state_dict(), groups, plan, token_inputs())
    assert difference(masked, sliced) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("criterion", ["lora", "magnitude", "gradient"])
def test_scores_are_those_of_the_dequantised_weights(criterion: str, kind: str, folders: dict[str, Path]) -> None:
    found = []
    for dequantised in (False, True):
        base = load(folders["llama"], kind)
        if dequantised:
            dequantise_(base)
        model = with_lora(base).train()
        scorer = make_scorer(criteria.get(criterion), model, find_groups(base.config), power=2, normalize=False, seed=0)
        model(input_ids=tokens(), labels=tokens()).loss.backward()
        found.append(scorer.collect())
    assert found[0].keys() == {group.name for group in find_groups(base.config)}
    for name, scores in found[0].items():
        assert scores.max() > 0
        assert torch.allclose(scores, found[1][name], rtol=1e-3), name


def test_whole_blocks_and_rows_are_cut_without_rounding() -> None:
    layer = linear4bit(torch.randn(96, 192))
    prepare_(nn.Sequential(layer))
    before = stored(layer).rows(0, 96)
    rows, columns = torch.arange(1, 96, 3), torch.arange(64, 192)
    cut_(layer, 0, rows)
    cut_(layer, 1, columns)
    assert torch.equal(stored(layer).rows(0, len(rows)), before[rows][:, columns])


def test_many_cuts_of_columns_round_no_more_than_one() -> None:
    """Rounding what was rounded before, 12 times, is the control."""
    torch.manual_seed(0)
    weight = 0.02 * torch.randn(128, 1024)
    layer, control = linear4bit(weight), linear4bit(weight)
    order, left = torch.randperm(1024), torch.arange(1024)
    for gone in range(48, 577, 48):
        kept = order[gone:].sort().values
        index = torch.searchsorted(left, kept)
        cut_(layer, 1, index)
        write_(control, stored(control).rows(0, 128)[:, index])
        left = kept
    original = weight[:, left]
    once = linear4bit(original)
    errors = [(stored(each).rows(0, 128) - original).norm().item() for each in (layer, control, once)]
    assert errors[0] < 1.35 * errors[2]
    assert errors[1] > 1.55 * errors[2]


@pytest.mark.parametrize("inputs", [16, 48, 64, 72, 80, 96, 9])
def test_a_4bit_layer_computes_with_the_weights_it_stores(inputs: int) -> None:
    """On a CPU bitsandbytes 0.50.2 takes wrong scales where 16 divides the inputs and 64 does not."""
    weight, x = torch.randn(40, inputs), torch.randn(3, inputs)
    layer = linear4bit(weight)
    prepare_(nn.Sequential(layer))
    rows = stored(layer).rows(0, 40)
    assert (rows - weight).norm() < 0.16 * weight.norm()
    for mode in (True, False):
        assert torch.allclose(layer.train(mode)(x), x @ rows.T, atol=1e-5)


def test_zeros_are_written_and_nothing_else_changes() -> None:
    layer = linear4bit(torch.randn(8, 96))
    prepare_(nn.Sequential(layer))
    before, kept = stored(layer).rows(0, 8), torch.rand(8, 96) < 0.5
    zero_(layer, kept)
    assert torch.equal(stored(layer).rows(0, 8), before * kept)


def repacked() -> bool:
    layer = linear4bit(torch.randn(64, 64)).eval()
    layer(torch.randn(2, 64))
    return bool(getattr(layer.weight.quant_state, "packing_format_for_cpu", False))


def test_the_repacking_trap_of_cpus_is_avoided_or_told(tmp_path: Path) -> None:
    if not repacked():
        pytest.skip("this CPU has no AVX512-BF16: bitsandbytes repacks nothing here")
    kind, config, folder = auto_class(EVERY["llama"].head), tiny_config("llama"), tmp_path / "llama"
    config.intermediate_size = 128  # it cannot repack rows of 96
    kind.from_config(config).save_pretrained(folder)
    how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    theirs = kind.from_pretrained(folder, quantization_config=how, device_map={"": "cpu"}, dtype=torch.float32)
    logits(theirs, tokens())
    with pytest.raises(ConfigError, match="repacked by a forward pass"):
        attach_lora(theirs, LoRAPruneConfig())
    ours = load(folder, "4bit")
    logits(ours, tokens())
    model = attach_lora(ours, LoRAPruneConfig(dropout=0.0)).train()
    model(input_ids=tokens(), labels=tokens()).loss.backward()
    gradients = [p.grad.abs().max() for name, p in model.named_parameters() if "lora_B" in name and p.grad is not None]
    assert len(gradients) == len(linear_paths(find_groups(ours.config)))
    assert min(gradients) > 0


def test_another_4bit_format_is_refused(folders: dict[str, Path]) -> None:
    how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="fp4")
    kind = auto_class(EVERY["llama"].head)
    model = kind.from_pretrained(folders["llama"], quantization_config=how, device_map={"": "cpu"})
    with pytest.raises(ConfigError, match="is not nf4 in blocks of 64"):
        attach_lora(model, LoRAPruneConfig())


@pytest.mark.parametrize("kind", KINDS)
def test_memory_of_a_weight_is_what_is_told(kind: str, folders: dict[str, Path]) -> None:
    layer = find_module(load(folders["llama"], kind), "model.layers.0.self_attn.q_proj")
    cut_(layer, 0, torch.arange(32))
    weight = stored(layer)
    assert not isinstance(weight, torch.Tensor)
    taken = sum(each.numel() * each.element_size() for name, each in parts(weight).items() if name != "code")
    assert taken == bytes_per_weight(kind, torch.float32, columns=64) * 32 * 64


def test_a_cut_tells_the_size_of_what_a_weight_stands_for(folders: dict[str, Path]) -> None:
    model = load(folders["llama"], "4bit")
    cut = next(cuts(find_module(model, "model.layers.0.mlp.down_proj"), "in"))
    assert (cut.shape, cut.size, cut.values().shape) == ((64, 96), 96, (64, 96))
    assert isinstance(stored(cut.owner), Nf4Blocks)
