"""`--data` and `--eval` together: training rows and held-out rows that never overlap.

Knows nothing about formats or tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from loraprune.data.encode import TokenRows, encode
from loraprune.data.sources import Source, read_source
from loraprune.errors import DataError

HELD_OUT_SHARE = 10
"""one in so many examples is held out where the source has no split of its own"""
HELD_OUT_ROWS = 256
"""rows that are enough to judge by: evaluating more would cost more than it tells"""


@dataclass(frozen=True, slots=True)
class Data:
    """Rows to train on and rows to judge by."""

    train: TokenRows
    held_out: TokenRows


def load_data(name: str, tokenizer: PreTrainedTokenizerBase, *, length: int, held_out: str | None = None) -> Data:
    """Read, split and encode a source; `held_out` names another source to judge by.

    Raises:
        DataError: if anything is wrong with it, or it is too short for two training rows and one held-out row.
    """
    train, other = read_source(name)
    if held_out is not None:
        first, second = read_source(held_out)
        other = second or replace(first, split="all")
    if other is None:
        train, other = split_examples(train)
    rows = encode(train, tokenizer, length=length), encode(other, tokenizer, length=length)
    if len(rows[0]) < 2 or not len(rows[1]):
        raise DataError(
            f"--data {name}: {rows[0].protocol['tokens']} tokens give {len(rows[0])} training and {len(rows[1])} held-out rows of "
            f"--length {length}; 2 and 1 are needed: give more text or a smaller --length"
        )
    return Data(rows[0], _first(rows[1]))


def load_rows(name: str, tokenizer: PreTrainedTokenizerBase, *, length: int) -> TokenRows:
    """Read and encode what a source has for judging: its held-out split where it has one, else all of it.

    Raises:
        DataError: if anything is wrong with it, or there is not one row.
    """
    everything, held_out = read_source(name)
    rows = encode(held_out or replace(everything, split="all"), tokenizer, length=length)
    if not len(rows):
        raise DataError(f"--data {name}: too short for one row; two tokens are the least")
    return rows


def split_examples(source: Source) -> tuple[Source, Source]:
    """Hold out the last tenth of the examples, or of a single text."""
    if len(source.examples) == 1 and isinstance(source.examples[0], str):
        text = source.examples[0]
        cut = (
            text.rfind("\n", 0, len(text) - len(text) // HELD_OUT_SHARE) + 1 or len(text) - len(text) // HELD_OUT_SHARE
        )
        source = replace(source, examples=(text[:cut], text[cut:]))
    held_out = max(1, len(source.examples) // HELD_OUT_SHARE)
    return source.take(0, -held_out, "first nine tenths"), source.take(-held_out, None, "last tenth")


def _first(rows: TokenRows) -> TokenRows:
    if len(rows) <= HELD_OUT_ROWS:
        return rows
    return TokenRows(rows.rows[:HELD_OUT_ROWS], {**rows.protocol, "rows": HELD_OUT_ROWS, "first_rows_only": True})
