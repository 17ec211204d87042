"""Chats to rows of tokens in which only the assistant's turns are targets.

Knows nothing about files.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence

from transformers import PreTrainedTokenizerBase

from loraprune.data.examples import Chat, Examples
from loraprune.data.rows import NO_TARGET, Row, TokenRows, make_rows
from loraprune.data.templates import Rendered, renderer
from loraprune.errors import DataError

BATCH = 256
"""chats that are tokenised together"""
OPEN_ROWS = 16
"""rows that packing keeps open: a short example can still fill a gap in these"""


def encode_chats(examples: Examples, tokenizer: PreTrainedTokenizerBase, *, length: int) -> TokenRows:
    """Tokenise chats, cut those that are too long, and pack them whole into rows of at most `length` tokens.

    Raises:
        DataError: if the chat template refuses a chat, or its assistant's turns cannot be found.
    """
    kept: list[Row] = []
    dropped = 0
    for chat, row in zip(examples.chats, _tokenise(examples.chats, tokenizer), strict=True):
        if row.labels.count(NO_TARGET) == len(row.labels):
            raise DataError(
                f"{chat.place}: the assistant's turns are empty or of weight 0, so there are no targets: remove the row"
            )
        short = shorten(row, length, bos=tokenizer.bos_token_id)
        dropped += len(row.input_ids) - len(short.input_ids)
        kept.append(short)
    bos = tokenizer.bos_token_id is not None and kept[0].input_ids[0] == tokenizer.bos_token_id
    return make_rows(pack(kept, length), examples, length=length, bos=bos, separator=None, dropped=dropped)


def _tokenise(chats: Sequence[Chat], tokenizer: PreTrainedTokenizerBase) -> Iterator[Row]:
    if not tokenizer.is_fast:
        raise DataError(
            "instructions and chats need a fast tokenizer (a tokenizer.json): give plain text, or convert it"
        )
    render = renderer(tokenizer)
    shared: dict[int, int] = {}
    for start in range(0, len(chats), BATCH):
        rendered = [render(chat) for chat in chats[start : start + BATCH]]
        encoded = tokenizer(
            [chat.text for chat in rendered],
            add_special_tokens=False,  # the template has written them
            return_attention_mask=False,
            return_token_type_ids=False,
            return_offsets_mapping=True,
            verbose=False,
        )
        for chat, ids, offsets in zip(rendered, encoded["input_ids"], encoded["offset_mapping"], strict=True):
            yield _label(chat, [shared.setdefault(token, token) for token in ids], offsets)


def _label(chat: Rendered, ids: list[int], offsets: Sequence[tuple[int, int]]) -> Row:
    """Mark as targets the tokens that overlap the assistant's words or the end of its turn; the first token is never one.

    Two different tokens may begin with the same characters, such as `<|`, so one that only begins in the end of a turn
    is not part of it. No position predicts the first token.
    """
    labels = [NO_TARGET] * len(ids)
    starts, ends = [start for start, _ in offsets], [end for _, end in offsets]
    for start, said, end in chat.spans:
        first, last = bisect_right(ends, start), max(bisect_left(starts, said), bisect_right(ends, end))
        labels[first:last] = ids[first:last]
    labels[:1] = [NO_TARGET] * len(labels[:1])
    return Row(ids, labels)


def shorten(row: Row, length: int, *, bos: int | None) -> Row:
    """Truncate an example that is too long: first the prompt, from the left and down to half of `length`, then the answer.

    What follows the last target is removed before that; BOS is kept.
    """
    if len(row.input_ids) <= length:
        return row
    targets = [place for place, label in enumerate(row.labels) if label != NO_TARGET]
    prompt, end = targets[0], targets[-1] + 1
    kept = min(prompt, max(length - (end - prompt), length // 2))
    start, head = prompt - kept, list[int]()
    if start and row.input_ids[0] == bos:
        start, head = start + 1, [bos]
    stop = min(end, start + length - len(head))
    return Row(head + row.input_ids[start:stop], [NO_TARGET] * len(head) + row.labels[start:stop])


def pack(rows: Iterable[Row], length: int) -> list[Row]:
    """Put whole examples together into rows of at most `length` tokens: each into the first open row it fits."""
    packed: list[Row] = []
    waiting: list[Row] = []
    for row in rows:
        place = next((other for other in waiting if len(other.input_ids) + len(row.input_ids) <= length), None)
        if place is None:
            place = Row([], [])
            packed.append(place)
            waiting = [*waiting[-OPEN_ROWS + 1 :], place]
        place.input_ids.extend(row.input_ids)
        place.labels.extend(row.labels)
    return packed
