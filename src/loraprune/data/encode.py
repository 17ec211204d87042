"""Tokenising and packing: texts into full windows, instructions and chats into rows whose prompts are no targets.

Knows nothing about files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from loraprune.data.sources import Message, Source
from loraprune.errors import ConfigError, DataError

IGNORED = -100
"""label of a token that is no target, as torch's cross entropy reads it"""
OPEN_ROWS = 16
"""rows that packing keeps open: a short example fills a gap a little further back"""
PLAIN_TEMPLATE = (
    "{% for message in messages %}{% if not loop.first %}{{ '\\n\\n' }}{% endif %}### {{ message['role'] }}\n"
    "{{ message['content'] }}{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{% if messages %}{{ '\\n\\n' }}{% endif %}### assistant\n{% endif %}"
)
"""used where a tokenizer has no chat template of its own"""


class Row(NamedTuple):
    """One row of a batch, before padding."""

    input_ids: list[int]
    labels: list[int]


@dataclass(frozen=True, slots=True)
class TokenRows:
    """A map-style data set for the Trainer, with the protocol that made it."""

    rows: tuple[Row, ...]
    protocol: Mapping[str, object]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        row = self.rows[index]
        return {"input_ids": row.input_ids, "labels": row.labels}


@dataclass(frozen=True, slots=True)
class Collator:
    """Pads rows to the longest of the batch."""

    pad_token_id: int

    def __call__(self, features: Sequence[Mapping[str, list[int]]]) -> dict[str, Int[Tensor, "batch seq"]]:
        """Return input_ids, attention_mask and labels of a batch."""
        longest = max(len(feature["input_ids"]) for feature in features)

        def padded(values: list[int], fill: int) -> list[int]:
            return values + [fill] * (longest - len(values))

        return {
            "input_ids": torch.tensor([padded(f["input_ids"], self.pad_token_id) for f in features]),
            "attention_mask": torch.tensor([padded([1] * len(f["input_ids"]), 0) for f in features]),
            "labels": torch.tensor([padded(f["labels"], IGNORED) for f in features]),
        }


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> None:
    """Raise a ConfigError if the tokenizer can give a token that the model has no embedding for."""
    largest = max(tokenizer.get_vocab().values(), default=0)
    if largest >= vocabulary:
        raise ConfigError(
            f"the tokenizer does not fit the model: it gives token {largest}, the model embeds {vocabulary}; "
            "put the tokenizer files that belong to the model into its folder"
        )


def encode(source: Source, tokenizer: PreTrainedTokenizerBase, *, length: int) -> TokenRows:
    """Return the rows of a source, at most `length` tokens each.

    Raises:
        DataError: if a chat template marks no assistant turn.
    """
    if source.form == "text":
        stream = _stream([text for text in source.examples if isinstance(text, str)], tokenizer)
        rows = windows(stream, length)
        dropped = len(stream) - sum(len(row.input_ids) for row in rows)
    else:
        pairs = [
            _chat(source, index, turns, tokenizer)
            for index, turns in enumerate(source.examples)
            if not isinstance(turns, str)
        ]
        kept = [_shorten(row, length) for row in pairs if any(label != IGNORED for label in row.labels[1:])]
        rows = pack(kept, length)
        dropped = sum(len(row.input_ids) for row in pairs) - sum(len(row.input_ids) for row in rows)
    return TokenRows(tuple(rows), _protocol(source, tokenizer, rows, length=length, dropped=dropped))


def _protocol(
    source: Source, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], *, length: int, dropped: int
) -> dict[str, object]:
    return {
        "source": source.name,
        "split": source.split,
        "form": source.form,
        "rows": len(rows),
        "tokens": sum(len(row.input_ids) for row in rows),
        "targets": sum(label != IGNORED for row in rows for label in row.labels[1:]),
        "length": length,
        "bos": _adds_bos(tokenizer),
        "separator": tokenizer.eos_token if source.form == "text" else None,
        "dropped_tokens": dropped,
    }


def _adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    ids = tokenizer("a")["input_ids"]
    return tokenizer.bos_token_id is not None and isinstance(ids, list) and ids[:1] == [tokenizer.bos_token_id]


def _stream(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens of all texts in one list, with an end token after each where the tokenizer has one."""
    end = [tokenizer.eos_token_id] if isinstance(tokenizer.eos_token_id, int) else []
    encoded: Any = tokenizer(list(texts), verbose=False)["input_ids"]
    return [token for ids in encoded for token in (*ids, *(end if ids[-1:] != end else []))]


def windows(stream: Sequence[int], length: int) -> list[Row]:
    """Cut a stream into full windows; a stream shorter than one window gives a short row."""
    starts = range(0, len(stream) - length + 1, length) if len(stream) >= length else [0]
    cut = [list(stream[start : start + length]) for start in starts]
    return [Row(ids, list(ids)) for ids in cut if len(ids) > 1]


def _chat(source: Source, index: int, turns: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> Row:
    """Return the tokens of a chat, with everything but the assistant's turns ignored.

    What a turn adds is found as the difference of two renderings, as few templates mark it.
    """
    template = tokenizer.chat_template or PLAIN_TEMPLATE
    messages = [dict(turn) for turn in turns]
    ids: list[int] = []
    labels: list[int] = []
    text = ""
    for place, turn in enumerate(messages):
        if turn["role"] != "assistant":
            continue
        before = _render(tokenizer, template, messages[:place], answer=True)
        after = _render(tokenizer, template, messages[: place + 1], answer=False)
        if not (before.startswith(text) and after.startswith(before)):
            raise DataError(
                f"--data {source.name}: row {index + 1}: the tokenizer's chat template rewrites earlier turns, so the "
                "assistant's cannot be told apart; give one exchange a row"
            )
        for part, target in ((before[len(text) :], False), (after[len(before) :], True)):
            encoded: Any = tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"]
            ids += encoded
            labels += encoded if target else [IGNORED] * len(encoded)
        text = after
    if isinstance(tokenizer.bos_token_id, int) and _adds_bos(tokenizer) and ids[:1] != [tokenizer.bos_token_id]:
        ids, labels = [tokenizer.bos_token_id, *ids], [IGNORED, *labels]
    return Row(ids, labels)


def _render(tokenizer: PreTrainedTokenizerBase, template: str, messages: list[dict[str, str]], *, answer: bool) -> str:
    try:
        text = tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=answer
        )
    except Exception as error:  # a template is a program of its own and may raise anything
        raise DataError(
            f"the tokenizer's chat template refuses a chat ({error}); check roles and their order"
        ) from None
    assert isinstance(text, str)
    return text


def _shorten(row: Row, length: int) -> Row:
    """Fit an example into `length` tokens, keeping as many targets as half a row or what the prompt leaves free."""
    excess = len(row.input_ids) - length
    if excess <= 0:
        return row
    prompt = next(place for place, label in enumerate(row.labels) if label != IGNORED)
    cut = min(excess, max(0, prompt - length // 2))
    return Row(row.input_ids[cut:][:length], row.labels[cut:][:length])


def pack(rows: Sequence[Row], length: int) -> list[Row]:
    """Put whole examples together into rows of at most `length` tokens: first fit over the last few rows."""
    packed: list[Row] = []
    for row in rows:
        place = next((r for r in packed[-OPEN_ROWS:] if len(r.input_ids) + len(row.input_ids) <= length), None)
        # The first token of an example is predicted from the one before it, which does not belong to it.
        labels = [IGNORED, *row.labels[1:]]
        if place is None:
            packed.append(Row(list(row.input_ids), labels))
        else:
            place.input_ids.extend(row.input_ids)
            place.labels.extend(labels)
    return packed
