"""Turn pairs of source and target texts into rows of tokens, for encoder-decoders: one pair a row.

Knows nothing about files.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from loraprune.data.examples import Examples, Pair
from loraprune.data.rows import Row, TokenRows, make_rows
from loraprune.errors import DataError

BATCH = 256
"""texts that are tokenised together"""


def encode_pairs(examples: Examples, tokenizer: PreTrainedTokenizerBase, length: int) -> TokenRows:
    """Tokenise sources and targets as the tokenizer does either, each truncated to `length` tokens; end tokens are kept.

    Raises:
        DataError: if the examples are not pairs, or a target is empty.
    """
    pairs = find_pairs(examples)
    for pair in pairs:
        if not pair.target.strip():
            raise DataError(f"{pair.place}: the target is empty, so there is nothing to train on: remove the row")
    sources, cut = _tokenise([pair.source for pair in pairs], tokenizer, length, option="text")
    targets, more = _tokenise([pair.target for pair in pairs], tokenizer, length, option="text_target")
    rows = [Row(source, target) for source, target in zip(sources, targets, strict=True)]
    bos = bool(rows) and tokenizer.bos_token_id is not None and rows[0].input_ids[:1] == [tokenizer.bos_token_id]
    return make_rows(rows, examples, length=length, bos=bos, separator=None, dropped=cut + more, shifted=False)


def find_pairs(examples: Examples) -> Sequence[Pair]:
    """Return the pairs of examples; an instruction is a source, its response the target.

    Raises:
        DataError: for running text and chats, which do not separate source and target.
    """
    if examples.format == "pair":
        return examples.pairs
    if examples.format != "instruction":
        raise DataError(
            f"{examples.source}: it holds {examples.format}; a model that encodes one text and decodes another needs the columns "
            "`source` and `target`, or `instruction` and `response`: rename them"
        )
    if long := next((chat for chat in examples.chats if len(chat.messages) != 2), None):
        raise DataError(
            f"{long.place}: it has {len(long.messages)} turns, one question and one answer are needed: split the row"
        )
    if odd := next((chat for chat in examples.chats if chat.tools), None):
        raise DataError(
            f"{odd.place}: it has tools, which a model that encodes one text and decodes another is not given: remove the column"
        )
    return [Pair(chat.place, *(str(message["content"]) for message in chat.messages)) for chat in examples.chats]


def _tokenise(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int, *, option: str
) -> tuple[list[list[int]], int]:
    """Return the tokens of every text, at most `length` each, and how many were cut off."""
    found: list[list[int]] = []
    cut = 0
    plain = {"return_attention_mask": False, "return_token_type_ids": False, "verbose": False}
    for start in range(0, len(texts), BATCH):
        some = list(texts[start : start + BATCH])
        for text, ids in zip(some, tokenizer(**{option: some}, **plain)["input_ids"], strict=True):
            if len(ids) > length:
                cut += len(ids) - length
                ids = tokenizer(**{option: text}, **plain, truncation=True, max_length=length)["input_ids"]
            found.append(ids)
    return found, cut
