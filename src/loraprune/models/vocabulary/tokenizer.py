"""Save a tokenizer with fewer tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from loraprune.models.folder import TOKENIZER_CONFIG
from loraprune.models.vocabulary.choice import Choice, kind_of, tokenizer_values

TOKENIZER = "tokenizer.json"


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, choice: Choice, folder: Path) -> None:
    """Write a tokenizer into a folder that has the tokens of `choice` only; its chat template and settings are the same.

    Raises:
        ConfigError: as `choose_tokens`.
    """
    tokenizer.save_pretrained(folder)
    for name in set(tokenizer.vocab_files_names.values()) - {TOKENIZER}:  # older forms of the whole vocabulary
        (folder / name).unlink(missing_ok=True)
    _write(folder / TOKENIZER, cut_values(tokenizer_values(tokenizer), choice.new))
    settings = json.loads((folder / TOKENIZER_CONFIG).read_text(encoding="utf-8"))
    if decoder := settings.get("added_tokens_decoder"):  # written by transformers 4
        settings["added_tokens_decoder"] = {str(choice.new[int(number)]): token for number, token in decoder.items()}
        _write(folder / TOKENIZER_CONFIG, settings)


def cut_values(values: Mapping[str, Any], new: Mapping[int, int]) -> dict[str, Any]:
    """Return the content of a tokenizer.json with fewer tokens; `new` is id before the cut -> id after it."""
    kind = kind_of(values)
    names = {token: new[number] for token, number in kind.tokens(values["model"]).items() if number in new}
    found = {
        **values,
        "model": kind.cut(values["model"], names),
        "added_tokens": [{**added, "id": new[added["id"]]} for added in values["added_tokens"]],
        "post_processor": _post_processor(values["post_processor"], new),
    }
    if found.get("padding"):
        padding = found["padding"]
        found["padding"] = {**padding, "pad_id": new.get(padding["pad_id"], padding["pad_id"])}
    return found


def _post_processor(values: Any, new: Mapping[int, int]) -> Any:
    """Return a post-processor with the tokens that it adds under their new ids."""
    if not values:
        return values
    found = dict(values)
    if "processors" in found:
        found["processors"] = [_post_processor(step, new) for step in found["processors"]]
    for name in {"cls", "sep"} & found.keys():
        token, number = found[name]
        found[name] = [token, new[number]]
    if "special_tokens" in found:
        found["special_tokens"] = {
            name: {**special, "ids": [new[number] for number in special["ids"]]}
            for name, special in found["special_tokens"].items()
        }
    return found


def _write(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, ensure_ascii=False, indent=2), encoding="utf-8")
