"""Latency, throughput and memory of models cut to 20 % and 50 % beside the dense one, at the 7B shape.

The paper reports latencies of -24.7 % and -49.5 %. Weights are random: speed does not depend on which units stay.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from transformers import GenerationConfig, LlamaForCausalLM

from loraprune.config.pruning import LoRAPruneConfig
from loraprune.evaluation.benchmark import compare_speed
from loraprune.evaluation.timing import Call, time_in_turns
from loraprune.families import find_groups
from loraprune.pruning.allocation.uniform import uniform_counts
from loraprune.pruning.surgery import slice_
from loraprune.pruning.target import make_space
from on_gpu.shapes import Chosen, build, config_of

BATCHES = (1, 8)
PROMPT = 8


def models_of(shape: str, device: torch.device) -> dict[str, LlamaForCausalLM]:
    """Return the dense model and two that are cut."""
    dense = build(config_of(shape), device).eval()
    groups = find_groups(dense.config)
    models = {"dense": dense}
    for ratio in (0.2, 0.5):
        counts = uniform_counts(make_space(dense, groups, LoRAPruneConfig(ratio=ratio)), ratio)
        smaller = copy.deepcopy(dense)
        slice_(smaller, groups, {name: range(count) for name, count in counts.items()})
        models[f"ratio {ratio}"] = smaller
    return models


def decoding(model: LlamaForCausalLM, *, batch: int, tokens: int) -> Call:
    """Return the greedy writing of some tokens after a short prompt, for many rows at once."""
    settings = GenerationConfig(
        do_sample=False, use_cache=True, min_new_tokens=tokens, max_new_tokens=tokens, pad_token_id=0
    )
    prompt = torch.randint(model.config.vocab_size, (batch, PROMPT), device=model.device)
    mask = torch.ones_like(prompt)
    return lambda: model.generate(prompt, attention_mask=mask, generation_config=settings)


def decode_rows(
    models: Mapping[str, LlamaForCausalLM], device: torch.device, *, tokens: int, repeats: int
) -> list[dict[str, Any]]:
    """Return the seconds of a decode step and the tokens a second by model and batch."""
    rows = []
    for batch in BATCHES:
        calls = {name: decoding(model, batch=batch, tokens=tokens) for name, model in models.items()}
        with torch.no_grad():
            spreads = time_in_turns(calls, repeats=repeats, device=device)
        rows += [
            {"model": name, "batch": batch, "step_seconds": spread.median / tokens,
             "tokens_per_second": batch * tokens / spread.median,
             "latency_change": spread.median / spreads["dense"].median - 1}
            for name, spread in spreads.items()
        ]  # fmt: skip
    return rows


def prefill_rows(comparison: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the seconds of a prefill by model and batch, and how they stand to the dense model's."""
    models = comparison["rows"]
    return [
        {"model": name, "batch": batch, "seconds": row["prefill_seconds"][str(batch)]["median"],
         "latency_change": row["prefill_seconds"][str(batch)]["median"]
         / models["dense"]["prefill_seconds"][str(batch)]["median"] - 1}
        for name, row in models.items() for batch in BATCHES
    ]  # fmt: skip


def run(chosen: Chosen) -> Iterator[dict[str, Any]]:
    """Yield prefill first, then decoding too."""
    shape, length = ("tiny", 64) if chosen.tiny else ("7B", 2048)
    repeats, tokens = (2, 4) if chosen.tiny else (6, 16)
    models = models_of(shape, chosen.device)
    compared = compare_speed(models, batches=BATCHES, length=length, new_tokens=1, repeats=repeats).to_json()
    result = {"definition": __doc__, "shape": shape, "comparison": compared, "prefill": prefill_rows(compared)}
    yield result
    yield result | {"decode": decode_rows(models, chosen.device, tokens=tokens, repeats=max(2, repeats - 2))}
