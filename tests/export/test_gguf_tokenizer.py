"""Tokenizers of the hub as llama.cpp's two kinds, and a clear word where there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from loraprune.errors import UnsupportedModelError
from loraprune.export.gguf.tokenizer import (
    BYTE,
    CONTROL,
    NORMAL,
    SPLITS,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    WORDS,
    read_vocabulary,
)
from loraprune.models.opening import load_tokenizer
from tests.export.cases import merging_tokenizer
from tests.samples import VOCABULARY, byte_tokenizer


def fast(tokenizer: Tokenizer, **special: str) -> Any:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def sentencepiece(merges: list[tuple[str, str]]) -> Any:
    """Return a tokenizer with bytes to fall back on, as those of Llama 2 are."""
    made = {"".join(merge) for merge in merges}
    letters = sorted({letter for merge in merges for part in merge for letter in part} - made)
    tokens = [
        "<unk>",
        "<s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        *letters,
        *dict.fromkeys("".join(m) for m in merges),
    ]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.ByteFallback()
    tokenizer.add_special_tokens(["<s>"])
    return fast(tokenizer, bos_token="<s>", unk_token="<unk>")


def split(rule: str, *, ignore_merges: bool) -> Any:
    letters = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(letters | {"ca": 256}, [("c", "a")], ignore_merges=ignore_merges))
    if rule == "gpt2":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    elif rule == "digits gpt2":
        parts = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)
    else:
        bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(rule), "isolated"), bytes_])
    return fast(tokenizer)


def test_bytes_special_tokens_and_rows_without_a_token() -> None:
    tokenizer = merging_tokenizer(extra=2)
    found = read_vocabulary(tokenizer, VOCABULARY)
    assert (found.model, found.pre, found.adds_bos, found.merges) == ("gpt2", "gpt-2", True, ["c a"])
    assert [found.types[number] for number in (0, 259, 260, 262)] == [CONTROL, NORMAL, USER_DEFINED, UNUSED]
    assert found.tokens[262] == "[PAD262]"


@pytest.mark.parametrize(("rule", "whole"), SPLITS, ids=SPLITS.values())
def test_the_rule_of_splitting_has_llama_cpps_name(rule: str, whole: bool) -> None:
    assert read_vocabulary(split(rule, ignore_merges=whole), VOCABULARY).pre == SPLITS[rule, whole]


def test_sentencepiece_scores_are_the_ranks_of_merges() -> None:
    found = read_vocabulary(sentencepiece([("▁", "a"), ("b", "c"), ("▁a", "bc")]), 300)
    place = {token: number for number, token in enumerate(found.tokens)}
    assert found.model == "llama"
    assert found.space_prefix
    assert found.scores is not None
    assert [found.scores[place[token]] for token in ("▁a", "bc", "▁abc")] == [0, -1, -2]
    assert [found.types[place[token]] for token in ("<unk>", "<s>", "<0x0A>")] == [UNKNOWN, CONTROL, BYTE]


def wordpiece() -> Any:
    return fast(Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]")))


def normalised() -> Any:
    tokenizer = split("gpt2", ignore_merges=False).backend_tokenizer
    tokenizer.normalizer = normalizers.Lowercase()
    return fast(tokenizer)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (wordpiece, "WordPiece tokenizer; BPE is needed"),
        (normalised, "it normalises text .Lowercase."),
        (lambda: split(r"\w+", ignore_merges=False), r"how it splits text"),
        (lambda: split(WORDS % "", ignore_merges=True), r"how it splits text"),
        (
            lambda: sentencepiece([("a", "b"), ("ab", "c"), ("b", "c"), ("a", "bc")]),
            "not in the order of what they make",
        ),
        (byte_tokenizer, "it has no merges"),
        (lambda: merging_tokenizer(extra=9), "has no row in an embedding of 264"),
        (object, "no tokenizer.json"),
    ],
)
def test_what_llama_cpp_cannot_do_is_told(make: Any, message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        read_vocabulary(make(), VOCABULARY)


@pytest.mark.parametrize("name", ["llama-stories-260k", "llama-stories-3m"])
def test_a_real_sentencepiece_tokenizer(name: str, shared: Path) -> None:
    tokenizer = load_tokenizer(str(shared / "models" / name))
    found = read_vocabulary(tokenizer, len(tokenizer))
    assert found.model == "llama"
    assert found.scores is not None
    assert min(found.scores) < -100
