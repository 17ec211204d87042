"""Turn documents into full rows of tokens.

Knows nothing about files or chats.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import cast

from transformers import PreTrainedTokenizerBase

from loraprune.data.examples import Examples
from loraprune.data.rows import Row, TokenRows, make_rows

PIECE = 1 << 18
"""characters after which a long document is cut; a tokenizer takes over 100 bytes of memory a character"""
BATCH = 1 << 20
"""characters that are tokenised together"""
LINE_START = re.compile(r"\n(?= ?\S)")


def encode_texts(examples: Examples, tokenizer: PreTrainedTokenizerBase, *, length: int) -> TokenRows:
    """Join all documents, each with the tokenizer's first token (BOS) and a separator (EOS), and split them into rows of `length`.

    The remainder is dropped, unless it is the only row and has two tokens or more.
    """
    rows, dropped = cut_rows(tokenise(examples.texts, tokenizer), length)
    bos = tokenizer.bos_token_id is not None and tokenizer.bos_token_id in first_tokens(tokenizer)
    return make_rows(rows, examples, length=length, bos=bos, separator=_separator(tokenizer), dropped=dropped)


def cut_rows(documents: Iterable[list[int]], length: int) -> tuple[list[Row], int]:
    """Cut the joined tokens of documents into rows; return the rows and the number of tokens left over."""
    rows: list[Row] = []
    rest: list[int] = []
    shared: dict[int, int] = {}
    for ids in documents:
        # One object for all equal tokens: 8 bytes a token instead of 36.
        rest += [shared.setdefault(token, token) for token in ids]
        end = len(rest) // length * length
        pieces = (rest[start : start + length] for start in range(0, end, length))
        rows += [Row(piece, piece) for piece in pieces]
        rest = rest[end:]
    if not rows and len(rest) >= 2:
        return [Row(rest, rest)], 0
    return rows, len(rest)


def tokenise(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[list[int]]:
    """Yield the tokens of every document in order."""
    first = first_tokens(tokenizer)
    separator = _separator(tokenizer)
    last: list[int] = [] if separator is None else [tokenizer.get_vocab()[separator]]
    for batch in _batches(texts):
        long = len(batch[0]) > PIECE
        encoded = [_tokenise_long(batch[0], tokenizer)] if long else _ids(tokenizer, batch)
        for ids in encoded:
            yield [*first, *ids, *last]


def first_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that the tokenizer puts before a text: usually BOS or none."""
    bare, whole = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    starts = range(len(whole) - len(bare) + 1)
    # BERT puts something after the text too, so what is before it must be found by the text.
    return list(whole[: next(start for start in starts if whole[start : start + len(bare)] == bare)])


def _separator(tokenizer: PreTrainedTokenizerBase) -> str | None:
    if isinstance(tokenizer.eos_token_id, int):
        return tokenizer.eos_token
    return tokenizer.sep_token if isinstance(tokenizer.sep_token_id, int) else None


def _ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    # verbose=False: a text longer than the model's window is what is wanted here, so no warning about it.
    encoded = tokenizer(
        texts, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False, verbose=False
    )
    return cast("list[list[int]]", encoded["input_ids"])


def _batches(texts: Sequence[str]) -> Iterator[list[str]]:
    """Group short documents; a long one is alone in its group."""
    batch: list[str] = []
    size = 0
    for text in texts:
        if batch and (size + len(text) > BATCH or len(text) > PIECE or len(batch[0]) > PIECE):
            yield batch
            batch, size = [], 0
        batch.append(text)
        size += len(text)
    if batch:
        yield batch


def _tokenise_long(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokenise a long text piece by piece, with the same result as in one call.

    Pieces start where a line does. Each is tokenised together with the line before it, whose tokens are then left out,
    so that a tokenizer's special treatment of the start of a text has no effect. A tokenizer whose tokens cross line ends
    gets the whole text at once.
    """
    tokens: list[int] = []
    pieces = list(_pieces(text))
    at_once = max(1, BATCH // PIECE)
    for first in range(0, len(pieces), at_once):
        group = pieces[first : first + at_once]
        contexts = _ids(tokenizer, [text[context:start] for context, start, _ in group])
        windows = _ids(tokenizer, [text[context:end] for context, _, end in group])
        for before, ids in zip(contexts, windows, strict=True):
            if ids[: len(before)] != before:
                return _ids(tokenizer, [text])[0]
            tokens += ids[len(before) :]
    return tokens


def _pieces(text: str) -> Iterator[tuple[int, int, int]]:
    """Yield where the context of each piece starts, where the piece starts and where it ends."""
    context = start = 0
    while start < len(text):
        found = LINE_START.search(text, start + PIECE)
        end = found.end() if found else len(text)
        yield context, start, end
        context, start = text.rfind("\n", 0, end - 1) + 1, end
