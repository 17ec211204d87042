"""Rows of tokens, how they are padded into a batch, and whether their tokens fit a model.

Knows nothing about where tokens come from.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from loraprune.data.examples import Examples
from loraprune.errors import ConfigError

NO_TARGET = -100
"""label of a token that is not to be predicted, as torch's cross entropy reads it"""


@runtime_checkable
class Rows(Protocol):
    """A map-style data set for `transformers.Trainer`, with the protocol that made it."""

    @property
    def protocol(self) -> Mapping[str, object]:
        """Return source, split, number of rows, and whatever else is needed to repeat a measurement."""

    def __len__(self) -> int:
        """Return the number of rows."""

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        """Return one row as the collator takes it."""

    def take(self, places: Sequence[int]) -> Rows:
        """Return some of the rows."""


@runtime_checkable
class TextRows(Protocol):
    """Rows of tokens."""

    def tokens(self) -> Iterator[Sequence[int]]:
        """Yield the tokens of every row before any are hidden; the source and the target of a pair separately."""

    def targets(self) -> Iterator[Sequence[int]]:
        """Yield the tokens of every row whose loss is measured; all of them where some are hidden."""


class Row(NamedTuple):
    """One row of a batch, before padding."""

    input_ids: list[int]
    labels: list[int]


@dataclass(frozen=True, slots=True)
class TokenRows(Dataset[dict[str, list[int]]]):
    """A map-style data set for `transformers.Trainer`, with the protocol that made it."""

    rows: tuple[Row, ...]
    protocol: Mapping[str, object]
    """source, format, split, rows, tokens, targets, length, bos, separator, dropped_tokens"""
    shifted: bool = True
    """whether labels are at the positions of input_ids, so that each is predicted from the position before; in a pair they are a
    separate row, and each is predicted at its position"""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        row = self.rows[index]
        return {"input_ids": row.input_ids, "labels": row.labels}

    def tokens(self) -> Iterator[Sequence[int]]:
        """Yield the tokens of every row; the source and the target of a pair separately."""
        for row in self.rows:
            yield row.input_ids
            if not self.shifted:
                yield _wanted(row.labels)

    def targets(self) -> Iterator[Sequence[int]]:
        """Yield the targets of every row."""
        # The first token of running text is never predicted.
        return (_wanted(row.labels[self.shifted :]) for row in self.rows)

    def take(self, places: Sequence[int]) -> TokenRows:
        """Return some of the rows."""
        taken = tuple(self.rows[place] for place in places)
        return replace(self, rows=taken, protocol={**self.protocol, **_counts(taken, shifted=self.shifted)})


def _wanted(labels: Sequence[int]) -> list[int]:
    return [label for label in labels if label != NO_TARGET]


def pad(lists: Sequence[list[int]], fill: int) -> Int[Tensor, "batch longest"]:
    """Pad lists on the right to the longest."""
    longest = max(len(values) for values in lists)
    return torch.tensor([values + [fill] * (longest - len(values)) for values in lists])


@dataclass(frozen=True, slots=True)
class Collator:
    """Pads rows on the right to the longest of the batch."""

    pad_token_id: int

    def __call__(self, features: Sequence[Mapping[str, list[int]]]) -> dict[str, Int[Tensor, "batch seq"]]:
        """Return input_ids, attention_mask and labels of a batch."""
        read = [feature["input_ids"] for feature in features]
        return {
            "input_ids": pad(read, self.pad_token_id),
            "attention_mask": pad([[1] * len(ids) for ids in read], 0),
            "labels": pad([feature["labels"] for feature in features], NO_TARGET),
        }


@dataclass(frozen=True, slots=True)
class PairCollator:
    """Pads sources and targets, each to its longest, and shifts the targets by one for the decoder's inputs."""

    pad_token_id: int
    start: int | None
    """token that a decoder starts with; None where it is the last one of the target, as in mBART"""

    def __call__(self, features: Sequence[Mapping[str, list[int]]]) -> dict[str, Int[Tensor, "batch _"]]:
        """Return input_ids, attention_mask, decoder_input_ids, decoder_attention_mask and labels of a batch."""
        read = [feature["input_ids"] for feature in features]
        written = [feature["labels"] for feature in features]
        seen = [[ids[-1] if self.start is None else self.start, *ids[:-1]] for ids in written]
        return {
            "input_ids": pad(read, self.pad_token_id),
            "attention_mask": pad([[1] * len(ids) for ids in read], 0),
            "decoder_input_ids": pad(seen, self.pad_token_id),
            "decoder_attention_mask": pad([[1] * len(ids) for ids in written], 0),
            "labels": pad(written, NO_TARGET),
        }


def make_rows(
    rows: Sequence[Row],
    examples: Examples,
    *,
    length: int,
    bos: bool,
    separator: str | None,
    dropped: int,
    shifted: bool = True,
) -> TokenRows:
    """Put rows and their protocol together."""
    protocol = {
        "source": examples.source,
        "format": examples.format,
        "split": examples.split,
        **_counts(rows, shifted=shifted),
        "length": length,
        "bos": bos,
        "separator": separator,
        "dropped_tokens": dropped,
    }
    return TokenRows(tuple(rows), protocol, shifted)


def take_rows(rows: TokenRows, start: int, stop: int, *, split: str) -> TokenRows:
    """Return some of the rows, as a split of another name."""
    taken = rows.take(range(start, stop))
    return replace(taken, protocol={**taken.protocol, "split": split})


def draw_rows(rows: Rows, count: int | None, *, seed: int) -> Rows:
    """Return `count` rows drawn without replacement, in their order; all rows if there are no more, or if `count` is None."""
    if count is None or count >= len(rows):
        return rows
    return rows.take(sorted(random.Random(seed).sample(range(len(rows)), count)))


def _counts(rows: Sequence[Row], *, shifted: bool) -> dict[str, int]:
    return {
        "rows": len(rows),
        "tokens": sum(len(row.input_ids) for row in rows),
        # The first token of running text is never predicted, so it is no target.
        "targets": sum(len(labels) - labels.count(NO_TARGET) for labels in (row.labels[shifted:] for row in rows)),
    }


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> None:
    """Check that the model has an embedding for every token that text can produce.

    A special token beyond the embeddings is accepted if nothing refers to it: Gemma 3's text models come with a token
    for images without an embedding.

    Raises:
        ConfigError: if the tokenizer can produce a token of `vocabulary` or above.
    """
    ids = tokenizer.get_vocab()
    largest = max(ids, key=lambda token: ids[token], default="")
    beyond = [token for token, number in ids.items() if number >= vocabulary]
    if any(not is_never_given(tokenizer, token, ids[token]) for token in beyond):
        raise ConfigError(
            f"tokenizer does not fit the model: it has {len(tokenizer)} tokens up to {ids[largest]} ({largest!r}), "
            f"the model embeds {vocabulary}: put the tokenizer that belongs to the model into its folder"
        )


def is_never_given(tokenizer: PreTrainedTokenizerBase, token: str, number: int) -> bool:
    """Say whether a token is a special one that neither the tokenizer nor its chat template adds to a text."""
    added = tokenizer.added_tokens_decoder.get(number)
    named = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token, tokenizer.pad_token)
    return added is not None and added.special and token not in named and token not in str(tokenizer.chat_template)
