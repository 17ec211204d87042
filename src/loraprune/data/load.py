"""`--data` and `--eval` together: rows for training and rows for evaluation, which never overlap.

Knows nothing about file formats or templates.
"""

from __future__ import annotations

import filecmp
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

from transformers import PreTrainedTokenizerBase

from loraprune.data.chats import encode_chats
from loraprune.data.examples import Examples, make_examples
from loraprune.data.files import OWN_NAMES, Columns
from loraprune.data.rows import TokenRows, take_rows
from loraprune.data.sources import Part, Source, naming, open_source
from loraprune.data.texts import encode_texts
from loraprune.errors import ConfigError, DataError

HELD_OUT_SHARE = 10
"""one example in so many is held out where the source has no split for it"""
HELD_OUT_ROWS = 256
"""rows that are enough for evaluation: more would cost time and hardly change the figure"""


Encode: TypeAlias = Callable[[Examples, PreTrainedTokenizerBase, int], TokenRows]
"""examples, tokenizer and longest row -> rows"""


@dataclass(frozen=True, slots=True)
class Data:
    """Rows for training and rows for evaluation."""

    train: TokenRows
    held_out: TokenRows


def encode_running(examples: Examples, tokenizer: PreTrainedTokenizerBase, length: int) -> TokenRows:
    """Make rows of running text: documents joined and cut, chats packed whole.

    Raises:
        DataError: for pairs, which a causal language model cannot read.
    """
    if examples.format == "pair":
        raise DataError(
            f"{examples.source}: sources and targets are for a model that encodes one text and decodes another; for this one "
            "name the columns `instruction` and `response`"
        )
    encode = encode_texts if examples.format == "text" else encode_chats
    return encode(examples, tokenizer, length=length)


def load_data(
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    length: int,
    held_out: str | None = None,
    encode: Encode = encode_running,
    columns: Columns = OWN_NAMES,
) -> Data:
    """Read a source and hold out a part of it, or evaluate on `held_out`, which names another source.

    Without `held_out` the rows for evaluation are the source's validation split, the last tenth of its documents or
    chats, or the last tenth of a single document. They are at most HELD_OUT_ROWS.

    Raises:
        ConfigError: if `length` is below 2.
        DataError: if a source is missing or malformed, the two share a file, or there are fewer than two rows to
            train on or none to evaluate on.
    """
    _check_length(length)
    with naming("--data"):
        data = open_source(source, columns)
        if held_out is None and "held_out" not in data.splits:
            rows = _hold_out(_examples(data.read("train")), tokenizer, length, encode=encode)
            return _enough(source, *rows, length=length)
    with naming("--eval" if held_out else "--data"):
        other = open_source(held_out, columns) if held_out else data
        check_apart(source, data, held_out or source, other=other)
        held_out_rows = encode(_examples(other.read("held_out")), tokenizer, length)
    with naming("--data"):
        return _enough(source, encode(_examples(data.read("train")), tokenizer, length), held_out_rows, length=length)


def load_rows(
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    length: int,
    split: Literal["train", "held_out"] | None = None,
    encode: Encode = encode_running,
    columns: Columns = OWN_NAMES,
) -> TokenRows:
    """Read a source for evaluation: all of a file or folder, or the `split` of a source that has splits.

    Without `split` it is the held-out one.

    Raises:
        ConfigError: if `length` is below 2.
        DataError: if the source is missing, malformed, or too short for one row.
    """
    _check_length(length)
    with naming("--data"):
        rows = encode(_examples(open_source(source, columns).read(split or "held_out")), tokenizer, length)
        if not len(rows):
            raise DataError(f"{source}: it holds only {_tokens(rows)} tokens: give at least two")
        return rows


def read_examples(source: str, part: str, columns: Columns = OWN_NAMES) -> Examples:
    """Read the part `train` or `held_out` of a source as texts, chats or pairs.

    Raises:
        DataError: if the source is missing or malformed.
    """
    return _examples(open_source(source, columns).read(part))


def _examples(part: Part) -> Examples:
    return make_examples(part.source, part.tables, split=part.split)


def _hold_out(
    examples: Examples, tokenizer: PreTrainedTokenizerBase, length: int, *, encode: Encode
) -> tuple[TokenRows, TokenRows]:
    count = len(examples)
    if count == 1:
        rows = encode(examples, tokenizer, length)
        cut = len(rows) - _share(len(rows))
        kept = take_rows(rows, 0, cut, split="train")
        return replace(kept, protocol={**kept.protocol, "dropped_tokens": 0}), take_rows(
            rows, cut, len(rows), split="held_out"
        )
    cut = count - _share(count)
    return (
        encode(examples.take(0, cut, split="train"), tokenizer, length),
        encode(examples.take(cut, count, split="held_out"), tokenizer, length),
    )


def _share(count: int) -> int:
    return max(1, count // HELD_OUT_SHARE)


def check_apart(name: str, data: Source, held_out: str, *, other: Source) -> None:
    """Check that no file, nor a copy of it, is used for both training and evaluation; splits of the hub are separate."""
    trained, evaluated = sorted(data.files_of("train")), sorted(other.files_of("held_out"))
    same = next((file for file in evaluated for each in trained if _is_same(file, each)), None)
    if same is not None and other is data:
        raise DataError(
            f"{held_out}: {same} is in it twice, to train on and to evaluate on: give other rows for evaluation, or name "
            "the training file alone to hold a tenth out"
        )
    if same is not None or (name == held_out and "held_out" not in data.splits):
        raise DataError(
            f"{held_out}: {same or 'all of it'} is trained on as part of --data: "
            "name another text, or leave --eval out to hold a tenth out"
        )


def _is_same(file: Path, other: Path) -> bool:
    """Return whether two files have the same content; links are resolved already."""
    return file == other or (file.stat().st_size == other.stat().st_size and filecmp.cmp(file, other, shallow=False))


def _enough(source: str, train: TokenRows, held_out: TokenRows, *, length: int) -> Data:
    """Check that there are enough rows, and keep at most HELD_OUT_ROWS for evaluation."""
    if len(train) < 2 or not len(held_out):
        raise DataError(
            f"{source}: {_tokens(train) + _tokens(held_out)} tokens give {len(train)} rows for training and {len(held_out)} "
            f"for evaluation at --length {length}; 2 and 1 are needed: give a shorter --length or more text"
        )
    if len(held_out) > HELD_OUT_ROWS:
        held_out = take_rows(held_out, 0, HELD_OUT_ROWS, split=str(held_out.protocol["split"]))
        held_out = replace(held_out, protocol={**held_out.protocol, "first_rows_only": True})
    return Data(train, held_out)


def _tokens(rows: TokenRows) -> int:
    return sum(len(row.input_ids) for row in rows.rows) + int(str(rows.protocol["dropped_tokens"]))


def _check_length(length: int) -> None:
    if length < 2:
        raise ConfigError(f"--length {length}: at least 2 is needed")
