"""How large and how fast models are, side by side: parameters, MACs, latency, throughput, memory.

Knows nothing about pruning: it compares any text models on one device, the first being the reference.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, cast

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import GenerationConfig, PreTrainedModel

from loraprune.errors import CheckpointError, ConfigError, UnsupportedModelError, nearest
from loraprune.evaluate import Call, Spread, evaluation_mode, time_in_turns
from loraprune.families import positions

PROMPT_TOKENS = 8
SEED = 0
DECODE = 0
"""key of decoding among the batch sizes"""


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one model takes. Keys of the prefill figures are batch sizes."""

    parameters: int
    """a tensor shared by several modules counts once"""
    weight_bytes: int
    file_bytes: int | None
    macs_per_token: int
    prefill_seconds: dict[int, Spread]
    prefill_tokens_per_second: dict[int, float]
    decode_seconds: Spread | None
    """one greedy generation at batch 1, the prompt included; None for a model that cannot generate"""
    decode_tokens_per_second: float | None
    """new tokens only, over the whole time"""
    peak_memory_bytes: int | None
    """weights and what the calls allocate beside them, on CUDA; elsewhere one process cannot tell its models apart"""


@dataclass(frozen=True, slots=True)
class Ratios:
    """One model beside the first: sizes as this / first, speed-ups as first / this, so above 1 is faster."""

    parameters: float
    weight_bytes: float
    file_bytes: float | None
    macs: float
    expected_speedup: float
    """MACs of the first / MACs of this"""
    prefill_speedup: dict[int, float]
    """by batch size: median of the ratios of samples taken next to each other in time"""
    achieved: dict[int, float]
    """prefill_speedup / expected_speedup"""
    decode_speedup: float | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Measurements by model name, the ratios of each to the first, and how they were taken."""

    rows: Mapping[str, Measurement]
    ratios: Mapping[str, Ratios]
    protocol: Mapping[str, object]

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values; batch sizes become strings."""
        return json.loads(json.dumps(asdict(self)))


def compare_speed(
    models: Mapping[str, PreTrainedModel],
    *,
    batches: Sequence[int] = (1, 16),
    length: int = 256,
    new_tokens: int = 32,
    repeats: int = 10,
    folders: Mapping[str, Path] | None = None,
) -> Comparison:
    """Measure models in one process, in turns (A B A B), after a warm-up of each, on the same random tokens.

    Prefill is a forward pass over `length` tokens with all logits, decoding a greedy generation of `new_tokens` with a
    KV cache from a prompt of 8 tokens. `folders` are the checkpoints of which the weight files are counted.

    Raises:
        ConfigError: a number is below 1 or beyond a model's positions, or the models are on different devices.
        CheckpointError: a folder does not exist.
        UnsupportedModelError: a model does not read token ids.
    """
    _check_numbers(batches, {"length": length, "new_tokens": new_tokens, "repeats": repeats})
    device = _check_models(models, folders or {}, tokens=max(length, PROMPT_TOKENS + new_tokens))
    calls = _make_calls(models, batches=batches, length=length, new_tokens=new_tokens)
    with ExitStack() as modes:
        for model in models.values():
            modes.enter_context(evaluation_mode(model))
        times = {what: time_in_turns(each, repeats=repeats, device=device) for what, each in calls.items()}
        peaks = {n: _peak_memory(m, [each[n] for each in calls.values() if n in each]) for n, m in models.items()}
    rows: dict[str, Measurement] = {}
    for name, model in models.items():
        seconds, decode = {batch: times[batch][name] for batch in batches}, times[DECODE].get(name)
        rows[name] = Measurement(
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            weight_bytes=_weight_bytes(model),
            file_bytes=_file_bytes(folders[name]) if folders and name in folders else None,
            macs_per_token=count_macs(model, length=length) // length,
            prefill_seconds=seconds,
            prefill_tokens_per_second={batch: batch * length / spread.median for batch, spread in seconds.items()},
            decode_seconds=decode,
            decode_tokens_per_second=new_tokens / decode.median if decode else None,
            peak_memory_bytes=peaks[name],
        )
    protocol = {
        "order": "in turns", "batches": list(batches), "length": length, "prompt_tokens": PROMPT_TOKENS,
        "new_tokens": new_tokens, "repeats": repeats, "seed": SEED, "device": str(device),
        "threads": torch.get_num_threads(), "torch": str(torch.__version__),
        "dtype": {name: str(model.dtype).removeprefix("torch.") for name, model in models.items()},
    }  # fmt: skip
    first = next(iter(rows.values()))
    return Comparison(rows, {name: _ratios(first, row) for name, row in rows.items()}, protocol)


def joined(first: Comparison, then: Comparison) -> Comparison:
    """Return two measurements as one: of models that were not in memory together, and so not timed in turns."""
    rows = {**first.rows, **then.rows}
    reference = next(iter(rows.values()))
    dtypes = {**cast(Any, first.protocol["dtype"]), **cast(Any, then.protocol["dtype"])}
    protocol = {**then.protocol, "order": "one after the other", "dtype": dtypes}
    return Comparison(rows, {name: _ratios(reference, row) for name, row in rows.items()}, protocol)


def count_macs(model: PreTrainedModel, *, length: int) -> int:
    """Return the multiply-accumulates of a forward pass over one sequence of `length` tokens, all its logits included.

    An encoder-decoder reads `length` tokens in each of its stacks.

    Matrix products only; attention counts the full square of positions. Works on the meta device too.

    Raises:
        ConfigError: the model's attention kernel hides its products from the counter.
    """
    kernel = getattr(model.config, "_attn_implementation", None)
    if kernel not in (None, "eager", "sdpa"):
        raise ConfigError(f"MACs of attention {kernel!r} cannot be counted: load with attn_implementation='sdpa'")
    tokens = torch.zeros(1, length, dtype=torch.long, device=model.device)
    # FlopCounterMode (torch 2.13) has no rule for the fused attention kernel of CPUs and counts it as nothing; the plain
    # kernel is made of matrix products, which it counts everywhere.
    with evaluation_mode(model), sdpa_kernel([SDPBackend.MATH]), FlopCounterMode(display=False) as counter:
        model(**_inputs(model, tokens))
    return int(counter.get_total_flops()) // 2


def _make_calls(
    models: Mapping[str, PreTrainedModel], *, batches: Sequence[int], length: int, new_tokens: int
) -> dict[int, dict[str, Call]]:
    """Return the calls to time by model name, for each batch size and under `DECODE`."""
    vocabulary = min(model.config.get_text_config().vocab_size for model in models.values())
    shape = (max(batches), max(length, PROMPT_TOKENS))
    drawn = torch.randint(vocabulary, shape, generator=torch.Generator().manual_seed(SEED))
    drawn = drawn.to(next(iter(models.values())).device)
    able = {name: model for name, model in models.items() if model.can_generate()}
    calls = {n: {name: _prefill(model, drawn[:n, :length]) for name, model in models.items()} for n in batches}
    return calls | {DECODE: {n: _decode(m, drawn[:1, :PROMPT_TOKENS], new_tokens=new_tokens) for n, m in able.items()}}


def _inputs(model: PreTrainedModel, tokens: Int[Tensor, "batch seq"]) -> dict[str, Tensor]:
    """Return what a forward pass reads: tokens, and as many in the decoder where the model has one of its own."""
    return {"input_ids": tokens} | ({"decoder_input_ids": tokens} if model.config.is_encoder_decoder else {})


def _prefill(model: PreTrainedModel, tokens: Int[Tensor, "batch seq"]) -> Call:
    inputs = _inputs(model, tokens)
    return lambda: model(**inputs, use_cache=True) if model.can_generate() else model(**inputs)


def _decode(model: PreTrainedModel, prompt: Int[Tensor, "batch seq"], *, new_tokens: int) -> Call:
    settings = GenerationConfig(
        do_sample=False, num_beams=1, use_cache=True, min_new_tokens=new_tokens, max_new_tokens=new_tokens, pad_token_id=0,
        decoder_start_token_id=getattr(model.config, "decoder_start_token_id", None),
    )  # fmt: skip
    able = cast(Any, model)  # the type of PreTrainedModel does not know which models generate
    return lambda: able.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=settings)


def _peak_memory(model: PreTrainedModel, calls: Sequence[Call]) -> int | None:
    """Return the weights and the most that a call allocates beside what lies on the device already, other models too."""
    if model.device.type != "cuda":
        return None
    torch.cuda.synchronize(model.device)
    torch.cuda.reset_peak_memory_stats(model.device)
    before = torch.cuda.memory_allocated(model.device)
    for call in calls:
        call()
    return _weight_bytes(model) + torch.cuda.max_memory_allocated(model.device) - before


def _weight_bytes(model: PreTrainedModel) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def _file_bytes(folder: Path) -> int | None:
    """Return the size of the weight files; None if they are not safetensors. A run's scores.safetensors is no weight."""
    return sum(file.stat().st_size for file in folder.glob("model*.safetensors")) or None


def _ratios(first: Measurement, this: Measurement) -> Ratios:
    def speedup(slow: Spread, fast: Spread) -> float:
        return median(s / f for s, f in zip(slow.samples, fast.samples, strict=True))

    expected = first.macs_per_token / this.macs_per_token
    prefill = {batch: speedup(first.prefill_seconds[batch], spread) for batch, spread in this.prefill_seconds.items()}
    decodes = first.decode_seconds, this.decode_seconds
    return Ratios(
        parameters=this.parameters / first.parameters,
        weight_bytes=this.weight_bytes / first.weight_bytes,
        file_bytes=this.file_bytes / first.file_bytes if this.file_bytes and first.file_bytes else None,
        macs=1 / expected,
        expected_speedup=expected,
        prefill_speedup=prefill,
        achieved={batch: value / expected for batch, value in prefill.items()},
        decode_speedup=speedup(decodes[0], decodes[1]) if decodes[0] and decodes[1] else None,
    )


def _check_numbers(batches: Sequence[int], numbers: Mapping[str, int]) -> None:
    wrong = [f"{name} {number}" for name, number in numbers.items() if number < 1]
    if wrong or min(batches, default=0) < 1:
        raise ConfigError(f"batches {list(batches)}{', '.join(['', *wrong])}: each must be at least 1")


def _check_models(models: Mapping[str, PreTrainedModel], folders: Mapping[str, Path], *, tokens: int) -> torch.device:
    """Return the device that all models are on, or raise what makes them incomparable."""
    devices = {model.device for model in models.values()}
    if len(devices) != 1:
        raise ConfigError(f"{len(models)} models on {len(devices)} devices: give at least one model, all on one device")
    for name, folder in folders.items():
        if name not in models:
            raise ConfigError(f"folder {str(folder)!r} belongs to no model {name!r}{nearest(name, models)}: rename it")
        if not folder.is_dir():
            raise CheckpointError(f"{str(folder)!r} is no folder: give the checkpoint of {name!r}")
    for name, model in models.items():
        if model.main_input_name != "input_ids":
            raise UnsupportedModelError(f"{name!r} reads {model.main_input_name}: only models of token ids are timed")
        most = positions(model.config)
        if most is not None and tokens > most:
            raise ConfigError(f"{tokens} tokens do not fit {name!r}, which has {most} positions: choose fewer")
    return devices.pop()
