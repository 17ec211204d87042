"""A tokenizer of the hub in the two kinds that llama.cpp has for decoders: SentencePiece's BPE with bytes, and byte-level BPE.

Reads tokenizer.json alone. Sources: llama.cpp's `src/llama-vocab.cpp` (commit 0c1e57098) for the names of splitting rules and what
they imply; tokenizers' documentation for the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loraprune.data import is_never_given
from loraprune.errors import UnsupportedModelError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""types of tokens in GGUF"""
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS: Mapping[tuple[str, bool], str] = {
    ("gpt2", False): "gpt-2",
    (WORDS % "{1,3}", True): "llama-bpe",
    (WORDS % "{1,3}", False): "smaug-bpe",
    (WORDS % "", False): "qwen2",
    ("digits gpt2", False): "smollm",
}
"""how text is split before merging, and whether whole words are looked up first -> llama.cpp's name"""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The entries of a GGUF file about a tokenizer."""

    model: str
    """llama or gpt2"""
    tokens: Sequence[str]
    types: Sequence[int]
    pre: str = "default"
    scores: Sequence[float] | None = None
    merges: Sequence[str] | None = None
    space_prefix: bool = False
    adds_bos: bool = False


def read_vocabulary(tokenizer: Any, size: int) -> Vocabulary:
    """Return the vocabulary of a fast tokenizer, filled up with unused tokens to the `size` of the embedding.

    Raises:
        UnsupportedModelError: if llama.cpp has no tokenizer that does the same.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise _refused("it has no tokenizer.json; save a fast tokenizer")
    values = json.loads(backend.to_str())
    model = values["model"]
    if model["type"] != "BPE":
        raise _refused(f"it is a {model['type']} tokenizer; BPE is needed")
    # Versions of transformers add <|endoftext|> to what they read from a GGUF file, and Gemma 3 has a token for images.
    added_tokens = [
        added for added in values["added_tokens"]
        if added["id"] < size or not is_never_given(tokenizer, added["content"], added["id"])
    ]  # fmt: skip
    vocabulary = dict(model["vocab"]) | {added["content"]: added["id"] for added in added_tokens}
    if max(vocabulary.values()) >= size:
        raise _refused(f"its token {max(vocabulary.values())} has no row in an embedding of {size}")
    tokens = [f"[PAD{number}]" for number in range(size)]
    types = [UNUSED] * size
    for token, number in vocabulary.items():
        tokens[number], types[number] = token, NORMAL
    for added in added_tokens:
        types[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    adds_bos = tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    merges = [merge.split(" ") if isinstance(merge, str) else list(merge) for merge in model["merges"]]
    if model.get("byte_fallback"):
        return _sentencepiece(values, tokens, types, merges, adds_bos)
    if not merges:
        raise _refused("it has no merges, which llama.cpp needs")
    pre = _split_of(values)
    return Vocabulary("gpt2", tokens, types, pre, merges=[" ".join(merge) for merge in merges], adds_bos=adds_bos)


def _sentencepiece(
    values: Mapping[str, Any], tokens: list[str], types: list[int], merges: list[list[str]], adds_bos: bool
) -> Vocabulary:
    """Return a vocabulary whose score of a token is the rank of the first merge that makes it, as llama.cpp knows no merges."""
    model = values["model"]
    places: dict[str, list[int]] = {}
    for rank, merge in enumerate(merges):
        places.setdefault("".join(merge), []).append(rank)
    torn = next((token for token, ranks in places.items() if ranks[-1] - ranks[0] >= len(ranks)), None)
    if torn is not None:
        raise _refused(
            f"its merges are not in the order of what they make ({torn!r}), which SentencePiece has no scores for"
        )
    scores = [-float(places[token][0]) if token in places else 0.0 for token in tokens]
    for number, token in enumerate(tokens):
        if len(token) == 6 and token.startswith("<0x"):
            types[number] = BYTE
    unknown = model.get("unk_token")
    if unknown is not None:
        types[model["vocab"][unknown]] = UNKNOWN
    text = json.dumps([values["normalizer"], values["pre_tokenizer"]])
    if '"Replace"' not in text and '"Metaspace"' not in text:
        raise _refused("it does not write spaces as SentencePiece does")
    prefix = '"Prepend"' in text or '"prepend_scheme": "first"' in text or '"prepend_scheme": "always"' in text
    return Vocabulary("llama", tokens, types, scores=scores, space_prefix=prefix, adds_bos=adds_bos)


def _split_of(values: Mapping[str, Any]) -> str:
    """Return llama.cpp's name for how a byte-level tokenizer splits text."""
    if (values["normalizer"] or {"type": "NFC"})["type"] != "NFC":
        raise _refused(f"it normalises text ({values['normalizer']['type']}), which llama.cpp does not")
    outer = values["pre_tokenizer"] or {}
    steps = outer.get("pretokenizers", [outer])
    kinds = [step.get("type") for step in steps]
    if "ByteLevel" not in kinds:
        raise _refused("it is not a byte-level tokenizer, and has no byte fallback")
    last = steps[kinds.index("ByteLevel")]
    if kinds == ["ByteLevel"] and last.get("use_regex", True) and not last.get("add_prefix_space"):
        rule = "gpt2"
    elif kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits") and last.get("use_regex", True):
        rule = "digits gpt2"
    else:
        rule = str(next((step["pattern"].get("Regex") for step in steps if step.get("type") == "Split"), None))
    found = SPLITS.get((rule, bool(values["model"].get("ignore_merges"))))
    if found is None:
        raise _refused(f"how it splits text ({rule[:60]}) is not among the rules known here")
    return found


def _refused(why: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"--format gguf: the tokenizer cannot be written: {why}. Use --format onnx, or llama.cpp's convert_hf_to_gguf.py"
    )


def add_vocabulary(writer: Any, tokenizer: Any, vocabulary: Vocabulary) -> None:
    """Write a vocabulary, the special tokens and the chat template."""
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(list(vocabulary.tokens))
    writer.add_token_types(list(vocabulary.types))
    if vocabulary.scores is not None:
        writer.add_token_scores(list(vocabulary.scores))
        writer.add_add_space_prefix(vocabulary.space_prefix)
    if vocabulary.merges is not None:
        writer.add_token_merges(list(vocabulary.merges))
    for name in ("bos", "eos", "unk", "pad"):
        number = getattr(tokenizer, f"{name}_token_id", None)
        if number is not None:
            getattr(writer, f"add_{name}_token_id")(number)
    writer.add_add_bos_token(vocabulary.adds_bos)
    template = tokenizer.chat_template
    if template:
        named = (
            [{"name": name, "template": text} for name, text in template.items()]
            if isinstance(template, dict)
            else template
        )
        writer.add_chat_template(named)
