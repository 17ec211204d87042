from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import count, groupby
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel, ViTConfig, ViTModel

from loraprune.errors import CheckpointError, ConfigError, UnsupportedModelError
from loraprune.evaluation import timing
from loraprune.evaluation.benchmark import Comparison, compare_speed, count_macs, joined
from loraprune.evaluation.benchmark import compare as comparing
from loraprune.evaluation.benchmark.engines import PROMPT_TOKENS
from loraprune.evaluation.timing import Call, Spread

HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, VOCABULARY = 32, 2, 4, 2, 8, 61


def tiny_llama(ffn: int = 48, *, tied: bool = False, attention: str = "sdpa") -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=HIDDEN, intermediate_size=ffn, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS, head_dim=HEAD_DIM, vocab_size=VOCABULARY, max_position_embeddings=64,
        tie_word_embeddings=tied, attn_implementation=attention,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def linear_macs(length: int, ffn: int) -> int:
    attention = HIDDEN * HEAD_DIM * (2 * HEADS + 2 * KV_HEADS)
    return length * (LAYERS * (attention + 3 * HIDDEN * ffn) + HIDDEN * VOCABULARY)


def attention_macs(length: int) -> int:
    return LAYERS * 2 * HEADS * HEAD_DIM * length**2


@pytest.fixture
def steady_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every reading is a second after the last, so every stretch takes a second and holds one call."""
    ticks = count()
    monkeypatch.setattr(timing, "perf_counter", lambda: float(next(ticks)))


def compare(models: dict[str, PreTrainedModel], **options: Any) -> Comparison:
    return compare_speed(models, **({"batches": (1, 2), "length": 8, "new_tokens": 3, "repeats": 2} | options))


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Keep what is timed from running; record the names that are timed together."""
    found: list[list[str]] = []

    def fake(calls: dict[str, Any], *, repeats: int, device: torch.device) -> dict[str, Spread]:
        found.append(list(calls))
        return {name: Spread(1.0, 1.0, 1.0, (1.0,) * repeats) for name in calls}

    monkeypatch.setattr(comparing, "time_in_turns", fake)
    return found


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_macs_equal_the_formula_of_linear_layers_and_attention(attention: str, device: str) -> None:
    with torch.device(device):
        model = tiny_llama(attention=attention)
    assert count_macs(model, length=16) == linear_macs(16, ffn=48) + attention_macs(16)


def test_the_counter_of_torch_alone_would_miss_attention_on_a_cpu() -> None:
    """Why `count_macs` chooses the kernel; when this fails, torch has learnt the rule and the choice can go."""
    model = tiny_llama()
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(input_ids=torch.zeros(1, 16, dtype=torch.long))
    assert counter.get_total_flops() // 2 == linear_macs(16, ffn=48)


def test_macs_fall_by_exactly_the_removed_channels() -> None:
    removed = count_macs(tiny_llama(ffn=48), length=16) - count_macs(tiny_llama(ffn=40), length=16)
    assert removed == 16 * LAYERS * 3 * HIDDEN * 8


def test_an_attention_kernel_that_cannot_be_counted_is_refused() -> None:
    model = tiny_llama()
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ConfigError, match="'flash_attention_2' cannot be counted"):
        count_macs(model, length=16)


def test_tied_embeddings_count_once(turns: list[list[str]]) -> None:
    rows = compare({"untied": tiny_llama(), "tied": tiny_llama(tied=True)}).rows
    shared = VOCABULARY * HIDDEN
    assert rows["untied"].parameters - rows["tied"].parameters == shared
    assert rows["untied"].weight_bytes - rows["tied"].weight_bytes == 4 * shared
    assert rows["tied"].parameters == tiny_llama(tied=True).num_parameters()


def test_a_model_beside_itself_is_the_same_size_and_promises_no_speed(turns: list[list[str]]) -> None:
    model = tiny_llama()
    ratios = compare({"one": model, "same": model}).ratios["same"]
    assert (ratios.parameters, ratios.weight_bytes, ratios.macs, ratios.expected_speedup) == (1, 1, 1, 1)


def test_a_smaller_model_is_measured_smaller_and_promises_speed(turns: list[list[str]]) -> None:
    compared = compare({"dense": tiny_llama(ffn=48), "pruned": tiny_llama(ffn=24)})
    ratios, rows = compared.ratios["pruned"], compared.rows
    removed = LAYERS * 3 * HIDDEN * 24
    assert rows["dense"].parameters - rows["pruned"].parameters == removed
    assert rows["dense"].macs_per_token - rows["pruned"].macs_per_token == removed
    assert ratios.parameters == rows["pruned"].parameters / rows["dense"].parameters
    assert ratios.expected_speedup == rows["dense"].macs_per_token / rows["pruned"].macs_per_token > 1


def test_forward_passes_of_the_models_alternate(steady_clock: None) -> None:
    ran: list[str] = []
    models: dict[str, PreTrainedModel] = {"A": tiny_llama(), "B": tiny_llama(ffn=24)}
    for name, model in models.items():
        model.register_forward_pre_hook(lambda *_, name=name: ran.append(name))
    compare(models, repeats=4)
    in_turn = [name for name, _ in groupby(ran)]
    stretches = 3 * (1 + 1 + 4) + 1  # (two batch sizes, decoding) x (warm-up, loop count, repeats), and the MACs
    assert in_turn == ["A", "B"] * stretches


def test_prefill_reads_the_same_seeded_tokens_and_decoding_makes_as_many_as_asked(
    steady_clock: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[list[int]]] = {"A": [], "B": []}
    outputs: list[torch.Size] = []
    models: dict[str, PreTrainedModel] = {"A": tiny_llama(), "B": tiny_llama(ffn=24)}
    plain = LlamaForCausalLM.generate

    def recording(model: LlamaForCausalLM, *rest: Any, **options: Any) -> Any:
        output = plain(model, *rest, **options)
        outputs.append(output.shape)
        return output

    monkeypatch.setattr(LlamaForCausalLM, "generate", recording)
    for name, model in models.items():
        model.generation_config.eos_token_id = list(range(VOCABULARY - 1))  # would end at once if it could
        model.register_forward_pre_hook(
            lambda _, args, kwargs, name=name: seen[name].append(kwargs["input_ids"][0].tolist()), with_kwargs=True
        )
    compare(models)
    assert set(outputs) == {torch.Size([1, PROMPT_TOKENS + 3])}
    prefill = [next(ids for ids in seen[name] if len(ids) == 8) for name in models]
    assert prefill[0] == prefill[1]
    assert len(set(prefill[0])) > 1


def test_decoding_uses_the_cache(steady_clock: None) -> None:
    lengths: list[int] = []
    model = tiny_llama()
    model.register_forward_pre_hook(
        lambda _, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    compare({"A": model}, length=16, new_tokens=4, batches=(1,), repeats=1)
    assert lengths == [16] * 3 + [8, 1, 1, 1] * 3 + [16]


def test_rates_and_speedups_follow_from_the_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine slows down threefold during the run; neighbours in time still show the true factor of two."""
    drift = (1.0, 2.0, 3.0)

    def fake(calls: dict[str, Any], *, repeats: int, device: torch.device) -> dict[str, Spread]:
        seconds = {"dense": [2 * d for d in drift], "pruned": list(drift)}
        return {n: Spread(sorted(s)[1], min(s), max(s), tuple(s)) for n, s in seconds.items() if n in calls}

    monkeypatch.setattr(comparing, "time_in_turns", fake)
    compared = compare({"dense": tiny_llama(ffn=48), "pruned": tiny_llama(ffn=24)}, repeats=3)
    dense, ratios = compared.rows["dense"], compared.ratios["pruned"]
    assert dense.prefill_tokens_per_second == {1: 8 / 4.0, 2: 16 / 4.0}
    assert dense.decode_tokens_per_second == 3 / 4.0
    assert ratios.prefill_speedup == {1: 2.0, 2: 2.0}
    assert ratios.decode_speedup == 2.0
    assert ratios.achieved[1] == pytest.approx(2.0 / ratios.expected_speedup)
    assert compared.ratios["dense"].prefill_speedup == {1: 1.0, 2: 1.0}


def test_samples_of_models_that_were_not_timed_in_turns_are_not_paired(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both medians are 2 s, but the samples drift in opposite directions: pairs would show a factor of 2."""
    samples = {"dense": (6.0, 2.0, 1.0), "pruned": (2.0, 1.0, 3.0)}

    def fake(calls: dict[str, Any], *, repeats: int, device: torch.device) -> dict[str, Spread]:
        return {name: Spread(sorted(s)[1], min(s), max(s), s) for name, s in samples.items() if name in calls}

    monkeypatch.setattr(comparing, "time_in_turns", fake)
    models = {"dense": tiny_llama(), "pruned": tiny_llama()}
    apart = joined(*(compare({name: model}, repeats=3) for name, model in models.items()))
    assert apart.protocol["order"] == "one after the other"
    assert (apart.ratios["pruned"].prefill_speedup, apart.ratios["pruned"].decode_speedup) == ({1: 1.0, 2: 1.0}, 1.0)
    assert compare(models, repeats=3).ratios["pruned"].decode_speedup == 2.0


def test_a_model_that_cannot_generate_is_not_decoded(turns: list[list[str]]) -> None:
    torch.manual_seed(0)
    encoder = BertModel(
        BertConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, vocab_size=VOCABULARY
        )
    )
    compared = compare({"encoder": encoder, "decoder": tiny_llama()})
    assert turns == [["encoder", "decoder"], ["encoder", "decoder"], ["decoder"]]
    assert compared.rows["encoder"].decode_seconds is None
    assert compared.ratios["decoder"].decode_speedup is None
    assert compared.rows["decoder"].decode_tokens_per_second == 3.0


def test_an_encoder_alone_is_timed(steady_clock: None) -> None:
    torch.manual_seed(0)
    config = BertConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4)
    row = compare({"encoder": BertModel(config)}).rows["encoder"]
    assert row.prefill_seconds[1].samples == (1.0, 1.0)
    assert row.decode_tokens_per_second is None


class Fixed:
    """An engine that does nothing, for one prompt at a time."""

    name, model, file_bytes, largest_batch = "engine 1.0", "dense", 100, 1

    def prefill(self, tokens: Tensor) -> Call:
        return lambda: None

    def decode(self, prompt: Tensor, *, new_tokens: int) -> Call:
        return lambda: None


def test_an_engine_stands_beside_its_model_and_takes_turns_with_it(turns: list[list[str]]) -> None:
    compared = compare({"dense": tiny_llama(), "pruned": tiny_llama(ffn=24)}, engines={"fast": Fixed()})
    assert turns == [["dense", "pruned", "fast"], ["dense", "pruned"], ["dense", "pruned", "fast"]]
    row, dense = compared.rows["fast"], compared.rows["dense"]
    assert (row.engine, row.file_bytes, row.parameters, row.macs_per_token) == (
        "engine 1.0", 100, dense.parameters, dense.macs_per_token,
    )  # fmt: skip
    assert row.prefill_tokens_per_second == {1: 8.0}
    assert compared.ratios["fast"].prefill_speedup == {1: 1.0}
    assert dense.engine == "transformers"


def test_everything_survives_json(steady_clock: None, tmp_path: Path) -> None:
    models: dict[str, PreTrainedModel] = {"dense": tiny_llama(), "pruned": tiny_llama(ffn=24)}
    values = compare(models, folders={"dense": tmp_path}).to_json()
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    assert set(values) == {"rows", "ratios", "protocol"}
    assert values["rows"]["pruned"]["prefill_seconds"]["2"]["samples"] == [1.0, 1.0]
    assert values["rows"]["pruned"]["peak_memory_bytes"] is None
    assert values["protocol"]["dtype"] == {"dense": "float32", "pruned": "float32"}


def test_only_weight_files_are_counted(turns: list[list[str]], tmp_path: Path) -> None:
    sizes = {"model-00001-of-00002.safetensors": 100, "model-00002-of-00002.safetensors": 30,
             "scores.safetensors": 7, "tokenizer.json": 5}  # fmt: skip
    for name, size in sizes.items():
        (tmp_path / name).write_bytes(b"x" * size)
    (tmp_path / "empty").mkdir()
    models: dict[str, PreTrainedModel] = {"one": tiny_llama(), "two": tiny_llama(), "three": tiny_llama()}
    compared = compare(models, folders={"one": tmp_path, "two": tmp_path / "empty"})
    assert [row.file_bytes for row in compared.rows.values()] == [130, None, None]
    assert compared.ratios["one"].file_bytes == 1
    assert compared.ratios["two"].file_bytes is None


def test_a_saved_model_weighs_its_file(turns: list[list[str]], tmp_path: Path) -> None:
    model = tiny_llama()
    model.save_pretrained(tmp_path)
    row = compare({"saved": model}, folders={"saved": tmp_path}).rows["saved"]
    assert row.file_bytes == (tmp_path / "model.safetensors").stat().st_size
    assert row.file_bytes is not None
    assert 0 < row.file_bytes - row.weight_bytes < 8192  # the header


def test_modes_and_generation_settings_are_left_as_they_were(steady_clock: None) -> None:
    model = tiny_llama().train()
    model.model.layers[0].eval()
    before = [module.training for module in model.modules()], model.generation_config.to_dict()
    compare({"one": model, "same": model})
    assert ([module.training for module in model.modules()], model.generation_config.to_dict()) == before


def wrong_calls(folder: Path) -> Iterator[tuple[type[Exception], str, dict[str, PreTrainedModel], dict[str, Any]]]:
    one: dict[str, PreTrainedModel] = {"one": tiny_llama()}
    with torch.device("meta"):
        away = tiny_llama()
    vit = ViTModel(ViTConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4))
    yield ConfigError, "at least one model", {}, {}
    yield ConfigError, "2 devices", one | {"away": away}, {}
    yield ConfigError, "repeats 0: each must be at least 1", one, {"repeats": 0}
    yield ConfigError, r"batches \[1, 0\]", one, {"batches": (1, 0)}
    yield ConfigError, r"batches \[\]", one, {"batches": ()}
    yield ConfigError, "65 tokens do not fit 'one', which has 64", one, {"length": 65}
    yield ConfigError, "68 tokens do not fit", one, {"new_tokens": 60}
    yield ConfigError, "did you mean 'one'", one, {"folders": {"onee": folder}}
    yield CheckpointError, "is not a folder", one, {"folders": {"one": folder / "absent"}}
    yield UnsupportedModelError, "'vit' reads pixel_values", one | {"vit": vit}, {}


@pytest.mark.parametrize("case", range(10))
def test_wrong_input_is_refused_before_anything_runs(case: int, turns: list[list[str]], tmp_path: Path) -> None:
    error, message, models, options = list(wrong_calls(tmp_path))[case]
    with pytest.raises(error, match=message):
        compare(models, **options)
    assert turns == []


@pytest.mark.gpu
def test_peak_memory_on_cuda_holds_weights_and_logits_but_no_other_model(steady_clock: None) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    models: dict[str, PreTrainedModel] = {"one": tiny_llama().cuda(), "same": tiny_llama().cuda()}
    one, same = compare(models).rows.values()
    assert one.peak_memory_bytes is not None
    assert one.peak_memory_bytes > one.weight_bytes + 2 * 8 * VOCABULARY * 4
    assert one.peak_memory_bytes == pytest.approx(same.peak_memory_bytes, rel=0.05)
