"""The calls that are timed: prefill of a batch, and decoding after one prompt.

Knows nothing about clocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from loraprune.evaluation.benchmark.macs import text_inputs
from loraprune.evaluation.timing import Call

PROMPT_TOKENS = 8
SEED = 0
DECODE = 0
"""key of decoding among the batch sizes"""


@runtime_checkable
class Engine(Protocol):
    """A program other than transformers that runs a model which is measured beside it, on a CPU."""

    name: str
    """with its version"""
    model: str
    """which of the models it runs: parameters and MACs are those"""
    file_bytes: int
    largest_batch: int | None
    """None where it takes any"""

    def prefill(self, tokens: Int[Tensor, "batch seq"]) -> Call:
        """Return the call that reads tokens."""

    def decode(self, prompt: Int[Tensor, "batch seq"], *, new_tokens: int) -> Call:
        """Return the call that reads a prompt and writes so many tokens, greedily."""


def make_calls(
    models: Mapping[str, PreTrainedModel],
    engines: Mapping[str, Engine],
    *,
    batches: Sequence[int],
    length: int,
    new_tokens: int,
) -> dict[int, dict[str, Call]]:
    """Return the calls to time by name of model or engine, for each batch size and under `DECODE`."""
    vocabulary = min(model.config.get_text_config().vocab_size for model in models.values())
    shape = (max(batches), max(length, PROMPT_TOKENS))
    drawn = torch.randint(vocabulary, shape, generator=torch.Generator().manual_seed(SEED))
    drawn = drawn.to(next(iter(models.values())).device)
    able = {name: model for name, model in models.items() if model.can_generate()}
    calls = {n: {name: _prefill(model, drawn[:n, :length]) for name, model in models.items()} for n in batches}
    prompt = drawn[:1, :PROMPT_TOKENS]
    calls[DECODE] = {name: _decode(model, prompt, new_tokens=new_tokens) for name, model in able.items()}
    for name, engine in engines.items():
        for batch in batches:
            if engine.largest_batch is None or batch <= engine.largest_batch:
                calls[batch][name] = engine.prefill(drawn[:batch, :length])
        calls[DECODE][name] = engine.decode(prompt, new_tokens=new_tokens)
    return calls


def _prefill(model: PreTrainedModel, tokens: Int[Tensor, "batch seq"]) -> Call:
    inputs = text_inputs(model, tokens)
    return lambda: model(**inputs, use_cache=True) if model.can_generate() else model(**inputs)


def _decode(model: PreTrainedModel, prompt: Int[Tensor, "batch seq"], *, new_tokens: int) -> Call:
    settings = GenerationConfig(
        do_sample=False, num_beams=1, use_cache=True, min_new_tokens=new_tokens, max_new_tokens=new_tokens, pad_token_id=0,
        decoder_start_token_id=getattr(model.config, "decoder_start_token_id", None),
    )  # fmt: skip
    able = cast(Any, model)  # the type of PreTrainedModel does not know which models generate
    return lambda: able.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=settings)
