"""Greedy continuations of prompts from held-out data, or targets of sources, for people to read.

Source: the paper (arXiv 2305.18403) shows what dense and pruned models write to the same prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from loraprune.data import TokenRows
from loraprune.data.rows import NO_TARGET
from loraprune.families import positions
from loraprune.models.modes import evaluation_mode

PROMPTS = 3
PROMPT_TOKENS = 24
NEW_TOKENS = 48
WORD_STARTS = ("Ġ", "▁")
"""how tokens mark the space before a word: byte-level BPE, and SentencePiece"""


def draw_prompts(rows: TokenRows, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Return the beginnings of a few rows spread over the data: sources, whole prompts of instructions, first words of texts."""
    count = min(PROMPTS, len(rows))
    chosen = [rows.rows[place * len(rows) // count] for place in range(count)]
    if not rows.shifted:
        return [row.input_ids for row in chosen]
    return [prompt for row in chosen if (prompt := _beginning(row.input_ids, row.labels, tokenizer))]


def _beginning(ids: list[int], labels: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    first_target = next((place for place, label in enumerate(labels) if label != NO_TARGET), 0)
    if first_target:
        return ids[:first_target]
    # A row of a text starts anywhere; better is where a document does, if enough of it follows.
    ends = (tokenizer.eos_token_id, tokenizer.bos_token_id)
    starts = [place + 1 for place, token in enumerate(ids[:-PROMPT_TOKENS]) if token in ends]
    start = starts[0] if starts else _first_sentence(tokenizer.convert_ids_to_tokens(ids[:-PROMPT_TOKENS]))
    return ids[start : start + PROMPT_TOKENS]


def _first_sentence(tokens: Sequence[str]) -> int:
    """Return where the first sentence of some tokens begins, else the first word."""
    words = [place for place, token in enumerate(tokens) if token.startswith(WORD_STARTS)]
    ended = [place for place in words if place and tokens[place - 1].endswith((".", "!", "?"))]
    return next(iter([*ended, *words]), 0)


def complete(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], *, new_tokens: int = NEW_TOKENS
) -> str:
    """Return the greedy continuation of a prompt, or the target of a source; shorter where the model's positions end."""
    most, reads_apart = positions(model.config), model.config.is_encoder_decoder
    room = new_tokens if most is None else min(new_tokens, most - 1 if reads_apart else most - len(prompt))
    if room < 1:
        return ""
    tokens = torch.tensor([list(prompt)], device=model.device)
    settings = GenerationConfig(
        do_sample=False, num_beams=1, max_new_tokens=room, pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.bos_token_id,
        decoder_start_token_id=getattr(model.config, "decoder_start_token_id", None),
    )  # fmt: skip
    able = cast(Any, model)  # the type of PreTrainedModel does not know which models generate
    with evaluation_mode(model):
        output = able.generate(tokens, attention_mask=torch.ones_like(tokens), generation_config=settings)[0].tolist()
    if reads_apart:
        return decode(tokenizer, output)
    # Decoded as a whole: some tokenizers drop the space before the first word.
    before, whole = decode(tokenizer, prompt), decode(tokenizer, output)
    return whole.removeprefix(before) if whole.startswith(before) else decode(tokenizer, output[len(prompt) :])


def decode(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    """Return the text of tokens, special ones left out."""
    text = tokenizer.decode(list(tokens), skip_special_tokens=True)
    assert isinstance(text, str)
    return text
