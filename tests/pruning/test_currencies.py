"""Targets in bytes and seconds: the shape that is chosen is counted and timed again without the code that chose it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache, PreTrainedModel

from loraprune.api import attach_lora
from loraprune.config.pruning import LoRAPruneConfig
from loraprune.errors import ConfigError, PlanError
from loraprune.evaluation.benchmark.macs import count_macs
from loraprune.models.cache import cache_name, cached_numbers
from loraprune.models.empty import empty_model, random_model
from loraprune.pruning import currencies
from loraprune.pruning.allocation import splits
from loraprune.pruning.currencies import bisect
from loraprune.pruning.deployment import Deployment
from loraprune.pruning.pace import Pace, expected_pace, shaped, timed_pace
from loraprune.pruning.pruner import Pruner
from loraprune.pruning.target import Target, find_target
from tests.samples import tiny_llama
from tests.tiny import tiny_model

CPU = torch.device("cpu")


def chosen(model: PreTrainedModel, **options: Any) -> tuple[Target, PreTrainedModel]:
    """Return the target of some options, and a model of its shape."""
    target = find_target(model, LoRAPruneConfig(**options))
    return target, shaped(model, target.groups, target.counts)


def bytes_of(model: PreTrainedModel, tokens: int) -> tuple[int, int]:
    """Return the bytes of a model's weights, and of its cache after some tokens."""
    cache: Any = DynamicCache(config=model.config)
    with torch.no_grad():
        model(torch.zeros(1, tokens, dtype=torch.long), use_cache=True, **{cache_name(model): cache})
    kept = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    return sum(p.nbytes for p in model.parameters()), kept


@pytest.mark.parametrize("tied", [False, True])
def test_a_file_is_as_large_as_asked_to_one_step(tied: bool, tmp_path: Path) -> None:
    model = tiny_llama(tie_word_embeddings=tied)
    target, smaller = chosen(model, file_size="96kB", round=1)
    smaller.save_pretrained(tmp_path)
    written = (tmp_path / "model.safetensors").stat().st_size
    step = 4 * 3 * 32 * 2  # a channel of each of two layers
    predicted = target.reached(target.counts)["file_bytes"]
    assert 96_000 - 2 * step <= predicted <= 96_000
    assert predicted - 1000 < written <= predicted
    dense = Deployment(torch.bfloat16, torch.float32, CPU)  # the control: half the bytes for each weight
    with pytest.raises(PlanError, match=r"--file-size 96kB: this model has [\d,]+ bytes of weights in bfloat16"):
        find_target(model, LoRAPruneConfig(file_size="96kB"), deployment=dense)


def test_memory_is_weights_and_cache_as_counted_in_a_run() -> None:
    model = tiny_llama()
    target, smaller = chosen(model, memory="120kB", context=60, round=1)
    found, (weights, cache) = target.reached(target.counts), bytes_of(smaller, 60)
    assert (found["weight_bytes"], found["cache_bytes"]) == (weights, cache)
    assert 110_000 < found["memory_bytes"] == weights + cache <= 120_000 < sum(bytes_of(model, 60))
    shorter, _ = chosen(model, memory="120kB", context=8, round=1)
    assert shorter.ratio < target.ratio  # the control: a short cache leaves more for weights
    target, smaller = chosen(model, memory="120kB", context=60, kinds="query,ffn", round=1)
    found, (weights, cache) = target.reached(target.counts), bytes_of(smaller, 60)
    assert (found["weight_bytes"], found["cache_bytes"]) == (weights, cache)
    assert cache == bytes_of(model, 60)[1]  # query heads keep all keys and values
    assert weights + cache <= 120_000


def test_every_split_that_may_be_measured_fits_the_memory() -> None:
    model = tiny_llama(num_attention_heads=8, num_key_value_heads=8, head_dim=16, intermediate_size=512)
    config = LoRAPruneConfig(memory="400kB", context=64, round=1)
    target = find_target(model, config)
    scores = {group.name: [1.0] * group.units for group in target.groups}

    def most(of: Any) -> int:
        return max(int(target.reached(of.spread(split))["memory_bytes"]) for split in splits(of, target.ratio, scores))

    assert most(target.space) <= 400_000
    free = find_target(model, LoRAPruneConfig(ratio=target.ratio, round=1)).space
    assert most(free) > 400_000  # the control: with all heads the cache is larger


@pytest.mark.parametrize("variant", ["llama", "gemma2", "gpt2"])
def test_a_model_without_weights_says_what_its_cache_holds(variant: str) -> None:
    model = tiny_model(variant)
    tokens = 24
    cached = cached_numbers(empty_model(model.config), tokens)
    assert cached is not None
    assert 4 * sum(cached) == bytes_of(model, tokens)[1]
    shorter = cached_numbers(empty_model(model.config), tokens // 2)
    assert shorter is not None
    assert sum(shorter) < sum(cached)  # the control


def test_an_encoder_has_no_cache_and_an_encoder_decoder_is_refused() -> None:
    model = tiny_model("bert")
    prunable = find_target(model, LoRAPruneConfig()).space.budget.prunable
    target, smaller = chosen(model, memory=f"{4 * (model.num_parameters() - prunable // 2)}B", round=1)
    found = target.reached(target.counts)
    assert (found["cache_bytes"], found["weight_bytes"]) == (0, sum(p.nbytes for p in smaller.parameters()))
    with pytest.raises(ConfigError, match=r"--memory 20kB: the cache of this 't5' .* use --file-size"):
        find_target(tiny_model("t5"), LoRAPruneConfig(memory="20kB"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"file_size": "10kB"}, r"--file-size 10kB: .* bytes of weights in float32, of which .* never pruned"),
        ({"memory": "9MB"}, r"--memory 9MB: this model takes [\d,]+ bytes with 64 tokens of context"),
        ({"memory": "9kB", "context": 8}, r"--memory 9kB: .* with 8 tokens .* choose a size between the two"),
        ({"memory": "120kB", "context": 65}, r"--context 65: this model has 64 positions"),
    ],
)
def test_what_cannot_be_had_is_refused_with_what_can(options: dict[str, Any], words: str) -> None:
    with pytest.raises((PlanError, ConfigError), match=words):
        find_target(tiny_llama(), LoRAPruneConfig(**options))


def by_size(dense: PreTrainedModel, start: PreTrainedModel, groups: Any, **_: Any) -> Any:
    """Stand for a clock: a model is as fast as it is small."""
    whole = dense.num_parameters()

    def measure(counts: Any) -> Pace:
        smaller = shaped(start, groups, counts).num_parameters()
        return Pace(whole / smaller, whole / 1e6, smaller / 1e6)

    return measure


def test_the_least_is_removed_that_is_as_fast_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(currencies, "timed_pace", by_size)
    model = tiny_llama()
    target, smaller = chosen(model, speedup=1.5, round=1)
    speedup = model.num_parameters() / smaller.num_parameters()
    found = target.reached(target.counts)
    assert 1.5 <= speedup == found["speedup"] < 1.54
    assert found == {
        "speedup": speedup, "dense_seconds": model.num_parameters() / 1e6, "pruned_seconds": smaller.num_parameters() / 1e6,
        "timed": "prefill", "tokens": 64, "device": "cpu",
    }  # fmt: skip
    assert chosen(model, speedup=1.2, round=1)[0].ratio < target.ratio  # the control
    with pytest.raises(
        PlanError, match=r"--speedup 40.0: .*prefill of 64 tokens is \d\.\d+ times as fast \(measured on cpu\)"
    ):
        find_target(model, LoRAPruneConfig(speedup=40.0))


def test_a_resumed_run_keeps_the_shape_that_was_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    config = LoRAPruneConfig(speedup=1.5, rank=2)
    monkeypatch.setattr(currencies, "timed_pace", by_size)
    first = Pruner(attach_lora(tiny_llama(), config), config)
    state = copy.deepcopy(first.state_dict())
    monkeypatch.setattr(currencies, "timed_pace", lambda *a, **o: lambda counts: Pace(9.0, 9.0, 1.0))
    again = Pruner(attach_lora(tiny_llama(), config), config)
    assert again.target.counts != first.target.counts  # the control: other times
    again.load_state_dict(state)
    assert again.target.counts == first.target.counts
    assert again.removed().reached == first.removed().reached


def test_a_narrow_shape_is_timed_faster_and_a_whole_one_is_not() -> None:
    config = tiny_llama(hidden_size=128, intermediate_size=16384, head_dim=8).config
    dense = random_model(config, device=CPU, dtype=torch.float32)
    groups = find_target(dense, LoRAPruneConfig()).groups
    whole = {group.name: group.units for group in groups}
    narrow = {name: units // 8 if "mlp" in name else units for name, units in whole.items()}
    timed = timed_pace(dense, dense, groups, phase="prefill", tokens=64)
    found, same = timed(narrow), timed(whole)
    assert found.speedup > 1.5 > same.speedup
    assert found.dense_seconds is not None
    assert found.pruned_seconds is not None
    assert timed_pace(dense, dense, groups, phase="decoding", tokens=64)(narrow).speedup > 1


@pytest.mark.parametrize(("variant", "phase"), [("llama", "prefill"), ("gpt2", "decoding")])
def test_an_expected_speed_is_that_of_the_multiplications(variant: str, phase: str) -> None:
    model = tiny_model(variant)
    target, smaller = chosen(model, ratio=0.5)
    dense, start = empty_model(model.config), empty_model(model.config)
    expected = expected_pace(dense, start, target.groups, phase=phase, tokens=24)
    length = 1 if phase == "decoding" else 24
    assert expected(target.counts) == Pace(count_macs(model, length=length) / count_macs(smaller, length=length))
    assert expected({group.name: group.units for group in target.groups}).speedup == 1  # the control


def test_models_that_are_not_timed_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"--speedup 1\.5: this model reads pixel_values"):
        find_target(tiny_model("vit"), LoRAPruneConfig(speedup=1.5))
    with pytest.raises(ConfigError, match=r"--speedup 1\.5 --timed decoding: .* use --timed prefill"):
        find_target(tiny_model("bert"), LoRAPruneConfig(speedup=1.5, timed="decoding"))


def test_random_weights_for_timing_change_no_other_draw() -> None:
    config = tiny_llama().config
    before = config.dtype
    torch.manual_seed(3)
    model = random_model(config, device=CPU, dtype=torch.bfloat16)
    drawn = torch.rand(3)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(3))
    assert (model.dtype, config.dtype) == (torch.bfloat16, before)


def test_precisions_are_those_of_a_run() -> None:
    known = Deployment.of_options("auto", CPU, known=torch.float16)
    assert (known.stored, known.computed) == (torch.float16, torch.float32)
    given = Deployment.of_options("bfloat16", CPU, known=torch.float16, timed=False)
    assert (given.stored, given.computed, given.device) == (torch.bfloat16, torch.bfloat16, None)
    assert Deployment.of_options("tf32", CPU, known=None).stored == torch.float32


def test_bisection_encloses_where_something_begins() -> None:
    low, high = bisect(lambda ratio: ratio >= 0.3, 0.9, step=0.01)
    assert low < 0.3 <= high <= low + 0.01
