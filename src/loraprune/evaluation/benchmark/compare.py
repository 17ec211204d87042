"""Compare sizes and speeds of models: parameters, MACs, latency, throughput, memory.

Knows nothing about pruning: it compares any text models on one device, the first being the reference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from loraprune.errors import CheckpointError, ConfigError, UnsupportedModelError, nearest
from loraprune.evaluation.benchmark.engines import DECODE, PROMPT_TOKENS, SEED, Engine, make_calls
from loraprune.evaluation.benchmark.macs import count_macs
from loraprune.evaluation.benchmark.results import Comparison, Measurement, ratios_of
from loraprune.evaluation.timing import Call, Spread, time_in_turns
from loraprune.families import positions
from loraprune.models.modes import evaluation_mode


def compare_speed(
    models: Mapping[str, PreTrainedModel],
    *,
    batches: Sequence[int] = (1, 16),
    length: int = 256,
    new_tokens: int = 32,
    repeats: int = 10,
    folders: Mapping[str, Path] | None = None,
    engines: Mapping[str, Engine] | None = None,
) -> Comparison:
    """Measure models in one process, in turns (A B A B), after a warm-up of each, on the same random tokens.

    Prefill is a forward pass over `length` tokens with all logits, decoding a greedy generation of `new_tokens` with a
    KV cache from a prompt of 8 tokens. `folders` are the checkpoints of which the weight files are counted; `engines` run models that
    are among them in other programs.

    Raises:
        ConfigError: a number is below 1 or beyond a model's positions, or the models are on different devices.
        CheckpointError: a folder does not exist.
        UnsupportedModelError: a model does not read token ids.
    """
    others = engines or {}
    _check_numbers(batches, {"length": length, "new_tokens": new_tokens, "repeats": repeats})
    device = _check_models(models, folders or {}, tokens=max(length, PROMPT_TOKENS + new_tokens))
    calls = make_calls(models, others, batches=batches, length=length, new_tokens=new_tokens)
    with ExitStack() as modes:
        for model in models.values():
            modes.enter_context(evaluation_mode(model))
        times = {what: time_in_turns(each, repeats=repeats, device=device) for what, each in calls.items()}
        peaks = {n: _peak_memory(m, [each[n] for each in calls.values() if n in each]) for n, m in models.items()}
    rows: dict[str, Measurement] = {}
    for name, model in models.items():
        seconds, decode = {batch: times[batch][name] for batch in batches}, times[DECODE].get(name)
        size = _file_bytes(folders[name]) if folders and name in folders else None
        rows[name] = _of_model(model, seconds, decode, size, peaks[name], length, new_tokens)
    for name, engine in others.items():
        rows[name] = _of_engine(
            engine, rows[engine.model], {key: times[key].get(name) for key in times}, length, new_tokens
        )
    protocol = {
        "order": "in turns", "batches": list(batches), "length": length, "prompt_tokens": PROMPT_TOKENS,
        "new_tokens": new_tokens, "repeats": repeats, "seed": SEED, "device": str(device),
        "threads": torch.get_num_threads(), "torch": str(torch.__version__),
        "dtype": {name: str(model.dtype).removeprefix("torch.") for name, model in models.items()},
    }  # fmt: skip
    first = next(iter(rows.values()))
    return Comparison(rows, {name: ratios_of(first, row) for name, row in rows.items()}, protocol)


def _of_model(
    model: PreTrainedModel,
    seconds: dict[int, Spread],
    decode: Spread | None,
    file_bytes: int | None,
    peak_bytes: int | None,
    length: int,
    new_tokens: int,
) -> Measurement:
    """Return what was measured of a model; `seconds` are those of a prefill by the size of its batch."""
    return Measurement(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        weight_bytes=_weight_bytes(model),
        file_bytes=file_bytes,
        macs_per_token=count_macs(model, length=length) // length,
        prefill_seconds=seconds,
        prefill_tokens_per_second={batch: batch * length / spread.median for batch, spread in seconds.items()},
        decode_seconds=decode,
        decode_tokens_per_second=new_tokens / decode.median if decode else None,
        peak_memory_bytes=peak_bytes,
    )


def _of_engine(
    engine: Engine, model: Measurement, times: Mapping[int, Spread | None], length: int, new_tokens: int
) -> Measurement:
    """Return the row of an engine: parameters and MACs are the model's, file size and speed are the engine's."""
    seconds = {batch: spread for batch, spread in times.items() if spread and batch != DECODE}
    decode = times[DECODE]
    return replace(
        model,
        weight_bytes=engine.file_bytes,
        file_bytes=engine.file_bytes,
        prefill_seconds=seconds,
        prefill_tokens_per_second={batch: batch * length / spread.median for batch, spread in seconds.items()},
        decode_seconds=decode,
        decode_tokens_per_second=new_tokens / decode.median if decode else None,
        peak_memory_bytes=None,
        engine=engine.name,
    )


def _peak_memory(model: PreTrainedModel, calls: Sequence[Call]) -> int | None:
    """Return the bytes of the weights plus the most that a call allocates; other tensors on the device are not counted."""
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
    """Return the size of the weight files; None if they are not safetensors. A run's scores.safetensors is not counted."""
    return sum(file.stat().st_size for file in folder.glob("model*.safetensors")) or None


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
            raise CheckpointError(f"{str(folder)!r} is not a folder: give the checkpoint of {name!r}")
    for name, model in models.items():
        if model.main_input_name != "input_ids":
            raise UnsupportedModelError(f"{name!r} reads {model.main_input_name}: only models of token ids are timed")
        most = positions(model.config)
        if most is not None and tokens > most:
            raise ConfigError(f"{tokens} tokens do not fit {name!r}, which has {most} positions: choose fewer")
    return devices.pop()
