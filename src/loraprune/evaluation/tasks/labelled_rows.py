"""Labelled texts as rows of tokens for the Trainer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from loraprune.data.labelled import Labelled

BATCH = 1000


@dataclass(frozen=True, slots=True)
class LabelledRows:
    """Rows of tokens with a label each."""

    rows: tuple[Mapping[str, Any], ...]
    protocol: Mapping[str, object]
    """source, split, rows, length, truncated"""
    metrics: tuple[str, ...]
    """the main metric of a model, and the others"""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return self.rows[index]

    def tokens(self) -> Iterator[Sequence[int]]:
        """Yield the tokens of every row."""
        return (row["input_ids"] for row in self.rows)

    def targets(self) -> Iterator[Sequence[int]]:
        """Yield nothing: a row has a label instead of targets."""
        return iter(())

    def take(self, places: Sequence[int]) -> LabelledRows:
        """Return some of the rows."""
        rows = tuple(self.rows[place] for place in places)
        return replace(self, rows=rows, protocol={**self.protocol, "rows": len(rows)})


def encode_labelled(
    data: Labelled,
    labels: Sequence[int | float],
    tokenizer: PreTrainedTokenizerBase,
    *,
    length: int,
    metrics: tuple[str, ...],
) -> LabelledRows:
    """Tokenise texts or pairs with the tokenizer's own special tokens, and cut those that are longer than `length`."""
    rows: list[Mapping[str, Any]] = []
    truncated = 0
    for start in range(0, len(data.examples), BATCH):
        some = data.examples[start : start + BATCH]
        columns = [list(column) for column in zip(*(example.texts for example in some), strict=True)]
        # `return_overflowing_tokens` would tell what was cut, but gives rows of its own for it.
        whole = tokenizer(*columns, truncation=False, verbose=False)["input_ids"]
        encoded = tokenizer(*columns, truncation=True, max_length=length)
        for place, (before, label) in enumerate(zip(whole, labels[start : start + BATCH], strict=True)):
            row = {name: values[place] for name, values in encoded.items()}
            truncated += len(before) > len(row["input_ids"])
            rows.append({**row, "label": label})
    protocol = {
        "source": data.source, "split": data.split, "rows": len(rows), "length": length, "truncated": truncated,
    }  # fmt: skip
    return LabelledRows(tuple(rows), protocol, metrics)
