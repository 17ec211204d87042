"""The kinds of tokenizers whose vocabulary can be cut: for each, the tokens that must stay and the smaller model.

Both work on the `model` entry of tokenizer.json. Source: the `tokenizers` library, its documentation and `models/*/model.rs`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

Values: TypeAlias = Mapping[str, Any]
"""the `model` entry of tokenizer.json"""

BYTE = re.compile(r"<0x[0-9A-F]{2}>")
SPACE = "▁"
"""SentencePiece's space: it must stay itself, as decoders turn it into a space before they read bytes"""


@dataclass(frozen=True, slots=True)
class Kind:
    """What differs between the kinds of tokenizers."""

    tokens: Callable[[Values], dict[str, int]]
    """every token with its id"""
    base: Callable[[Values], set[str]]
    """tokens that stay whatever the data: with them every text that could be encoded still can"""
    parts: Callable[[Values], Callable[[str], Collection[str]]]
    """makes a function that returns the tokens from which the tokenizer makes a token"""
    cut: Callable[[Values, Mapping[str, int]], dict[str, Any]]
    """the entry with some of the tokens under new ids, which follow the order of the old ones"""


def _characters(tokens: Collection[str], prefix: str = "") -> set[str]:
    """Return the tokens of a single character, also after a prefix of continued words."""
    return {token for token in tokens if len(token) == 1 or (prefix and len(token.removeprefix(prefix)) == 1)}


def _bytes(tokens: Collection[str]) -> set[str]:
    return {token for token in tokens if BYTE.fullmatch(token)}


def _bpe_merges(model: Values) -> Iterator[tuple[str, str]]:
    """Yield the merges in order: pairs, or in older files text with a space."""
    for merge in model["merges"]:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        yield left, right


def _bpe_base(model: Values) -> set[str]:
    """Return the bytes of byte-level BPE or of the byte fallback, and without either all characters."""
    tokens = model["vocab"]
    unknown = {model["unk_token"]} & tokens.keys()
    if model.get("byte_fallback"):
        return _bytes(tokens) | ({SPACE} & tokens.keys()) | unknown
    return _characters(tokens) | unknown


def _bpe_parts(model: Values) -> Callable[[str], Collection[str]]:
    """Return a function that merges the characters of a token by rank and returns all tokens on the way.

    A token of a text is made in the same way as alone: no merge crossed its borders, or it would be another token, so that inside
    them always the lowest rank was next. Tokens that merging cannot make are looked up whole (`ignore_merges`) and have no parts.
    """
    ranks = {merge: rank for rank, merge in enumerate(_bpe_merges(model))}

    def parts(token: str) -> Collection[str]:
        pieces, seen = list(token), set(token)
        while len(pieces) > 1:
            ranked = [(ranks[pair], place) for place, pair in enumerate(pairwise(pieces)) if pair in ranks]
            if not ranked:
                return ()
            _, place = min(ranked)
            pieces[place : place + 2] = ["".join(pieces[place : place + 2])]
            seen.add(pieces[place])
        return seen

    return parts


def _bpe_cut(model: Values, new: Mapping[str, int]) -> dict[str, Any]:
    """Keep every merge whose parts and result are kept; those of kept tokens are among them."""
    merges = [[left, right] for left, right in _bpe_merges(model) if {left, right, left + right} <= new.keys()]
    return {**model, "vocab": {token: new[token] for token in model["vocab"] if token in new}, "merges": merges}


def _unigram_base(model: Values) -> set[str]:
    """Return characters, bytes, the unknown token, and the least likely token, whose score sets that of unknown characters."""
    tokens = [token for token, _ in model["vocab"]]
    unknown = {tokens[model["unk_id"]]} if model.get("unk_id") is not None else set()
    least = min(model["vocab"], key=lambda entry: entry[1])[0]
    return _characters(tokens) | _bytes(tokens) | unknown | {least}


def _unigram_cut(model: Values, new: Mapping[str, int]) -> dict[str, Any]:
    unknown = model.get("unk_id")
    return {
        **model, "vocab": [entry for entry in model["vocab"] if entry[0] in new],
        "unk_id": None if unknown is None else new[model["vocab"][unknown][0]],
    }  # fmt: skip


def _wordpiece_base(model: Values) -> set[str]:
    """Return characters at the beginning and inside of words, and the unknown token."""
    tokens = model["vocab"]
    return _characters(tokens, model["continuing_subword_prefix"]) | ({model["unk_token"]} & tokens.keys())


def _wordpiece_cut(model: Values, new: Mapping[str, int]) -> dict[str, Any]:
    return {**model, "vocab": {token: new[token] for token in model["vocab"] if token in new}}


def _no_parts(_: Values) -> Callable[[str], Collection[str]]:
    return lambda _token: ()


KINDS: Mapping[str, Kind] = {
    "BPE": Kind(lambda model: dict(model["vocab"]), _bpe_base, _bpe_parts, _bpe_cut),
    "Unigram": Kind(
        lambda model: {token: number for number, (token, _) in enumerate(model["vocab"])},
        _unigram_base,
        _no_parts,
        _unigram_cut,
    ),
    "WordPiece": Kind(lambda model: dict(model["vocab"]), _wordpiece_base, _no_parts, _wordpiece_cut),
}
"""type in tokenizer.json -> kind"""
