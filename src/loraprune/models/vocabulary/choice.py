"""Choose the tokens that a model keeps: those of the data, and all that the tokenizer needs beside them."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from loraprune.errors import ConfigError
from loraprune.models.vocabulary.ids import named_ids, renumbered
from loraprune.models.vocabulary.kinds import BYTE, KINDS, SPACE, Kind


@dataclass(frozen=True, slots=True)
class Choice:
    """The tokens that a model keeps."""

    kept: tuple[int, ...]
    """their ids before the cut, ascending; the place is the id after it. A special token without an embedding comes last"""
    dense: int
    """rows of the embedding before the cut"""

    @property
    def rows(self) -> int:
        """Return the rows of the embedding after the cut."""
        return sum(number < self.dense for number in self.kept)

    @property
    def new(self) -> dict[int, int]:
        """Return id before the cut -> id after it."""
        return {old: new for new, old in enumerate(self.kept)}

    def config(self, original: PreTrainedConfig) -> PreTrainedConfig:
        """Return a configuration for the smaller vocabulary."""
        return renumbered(original, self.new, self.rows)


def choose_tokens(
    tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, counts: Mapping[int, int], amount: int | None
) -> Choice:
    """Return the tokens that `counts` names, or of `amount` tokens in all the most frequent ones; bytes and special tokens always.

    Every token is kept with those from which merges make it. Where the data have fewer than `amount`, the tokens with the lowest ids
    are added, which are a tokenizer's most frequent ones.

    Raises:
        ConfigError: if the tokenizer has no tokenizer.json or is of a kind that cannot be cut, or cannot have `amount` tokens.
    """
    values = tokenizer_values(tokenizer)
    kind, model = kind_of(values), values["model"]
    ids = kind.tokens(model)
    names, parts = {number: token for token, number in ids.items()}, kind.parts(model)

    def closed(number: int) -> set[int]:
        made_of = parts(names[number]) if number in names else ()
        return {number, *(ids[part] for part in made_of if part in ids)}

    dense = config.get_text_config().vocab_size
    added = {token["id"] for token in values["added_tokens"]}
    present = added | set(ids.values())
    always = added | set(_post_processed(values["post_processor"])) | {ids[token] for token in kind.base(model)}
    always |= {one for one in (*tokenizer.all_special_ids, *named_ids(config)) if one in present or one < dense}
    kept = {part for number in always for part in closed(number)}
    ranked = sorted(present - kept, key=lambda number: (-counts.get(number, 0), number))
    if amount is None:
        kept |= {part for number in ranked if counts.get(number, 0) for part in closed(number)}
    else:
        check_amount(amount, least=len(kept), most=len(present | kept))
        for number in ranked:
            more = closed(number) - kept
            if len(kept) + len(more) <= amount:
                kept |= more
            if len(kept) == amount:
                break
    return Choice(tuple(sorted(kept)), dense)


def reads_no_text(asked: str | int) -> ConfigError:
    """Return the error for a model without text."""
    return ConfigError(f"--vocabulary {asked}: this model reads no text; leave it out")


def check_amount(amount: int, *, least: int, most: int) -> None:
    """Refuse a number of tokens that a vocabulary cannot have.

    Raises:
        ConfigError: for such a number.
    """
    if amount < least:
        raise ConfigError(
            f"--vocabulary {amount}: bytes or characters, special and added tokens alone are {least}; give at least that many, or `data`"
        )
    if amount > most:
        raise ConfigError(f"--vocabulary {amount}: the model has {most} tokens; give fewer, or leave it out")


def planned(config: PreTrainedConfig, amount: int) -> PreTrainedConfig:
    """Return the configuration of a model whose vocabulary is cut to `amount` tokens: an estimate without a tokenizer.

    Raises:
        ConfigError: if it cannot have `amount` tokens.
    """
    named = sorted(set(named_ids(config)))
    check_amount(amount, least=len(named), most=config.get_text_config().vocab_size)
    return renumbered(config, {old: new for new, old in enumerate(named)}, amount)


def tokenizer_values(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return the content of tokenizer.json.

    Raises:
        ConfigError: if there is none.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ConfigError(
            f"--vocabulary: {type(tokenizer).__name__} has no tokenizer.json, and only that can be cut; save a fast tokenizer into the "
            "model's folder, or leave --vocabulary out"
        )
    found: dict[str, Any] = json.loads(backend.to_str())
    return found


def kind_of(values: Mapping[str, Any]) -> Kind:
    """Return the kind of a tokenizer.

    Raises:
        ConfigError: if it cannot be cut.
    """
    model = values["model"]
    marked = [name for name in ("continuing_subword_prefix", "end_of_word_suffix") if model.get(name)]
    if model["type"] not in KINDS or (model["type"] == "BPE" and marked):
        what = f"BPE with {marked[0]}" if model["type"] in KINDS else model["type"]
        raise ConfigError(
            f"--vocabulary: the tokenizer is of kind {what}; only {', '.join(KINDS)} can be cut; leave --vocabulary out"
        )
    return KINDS[model["type"]]


def _post_processed(values: Any) -> Iterator[int]:
    """Yield the ids of the tokens that a post-processor adds to texts."""
    for step in (values or {}).get("processors", [values] if values else []):
        yield from (step[name][1] for name in ("cls", "sep") if name in step)
        for special in step.get("special_tokens", {}).values():
            yield from special["ids"]


def byte_lengths(tokenizer: PreTrainedTokenizerBase) -> dict[int, int]:
    """Return id -> UTF-8 bytes of text that a token stands for; 0 for special and unknown tokens.

    The bytes of a text are the same by any of its segmentations. A space that a tokenizer drops counts for none of them.

    Raises:
        ConfigError: as `choose_tokens`.
    """
    values = tokenizer_values(tokenizer)
    model = values["model"]
    by_byte = '"ByteLevel"' in json.dumps([values["pre_tokenizer"], values["decoder"]])
    prefix = model.get("continuing_subword_prefix") or ""
    lengths = {
        number: len(token) if by_byte else 1 if BYTE.fullmatch(token) else _length(token.removeprefix(prefix))
        for token, number in kind_of(values).tokens(model).items()
    }
    lengths |= {added["id"]: 0 if added["special"] else _length(added["content"]) for added in values["added_tokens"]}
    return lengths | dict.fromkeys(_unknown(tokenizer), 0)


def _length(token: str) -> int:
    return len(token.replace(SPACE, " ").encode())


def _unknown(tokenizer: PreTrainedTokenizerBase) -> Collection[int]:
    return () if tokenizer.unk_token_id is None else (int(tokenizer.unk_token_id),)
