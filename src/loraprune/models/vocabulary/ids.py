"""The tokens that a configuration names by number, before and after a cut."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from transformers import GenerationConfig, PreTrainedConfig

ENDINGS = ("token_id", "token_ids", "token_index")
"""of the names of keys that hold one id or several"""
LISTS = ("suppress_tokens", "begin_suppress_tokens")
"""keys of a generation configuration that hold ids which need not be kept"""


def named_ids(config: PreTrainedConfig | GenerationConfig) -> Iterator[int]:
    """Yield the ids of the tokens that a configuration names."""
    for part in parts_of(config):
        for name, value in part.to_dict().items():
            if name.endswith(ENDINGS):
                yield from (one for one in (value if isinstance(value, list) else [value]) if _is_id(one))


def renumbered(config: PreTrainedConfig, new: Mapping[int, int], rows: int) -> PreTrainedConfig:
    """Return a configuration whose embedding has fewer rows, with the tokens that it names under their new ids."""
    found = copy.deepcopy(config)
    for part in parts_of(found):
        renumber_(part, new)
    found.get_text_config().vocab_size = rows
    return found


def renumber_(config: PreTrainedConfig | GenerationConfig, new: Mapping[int, int]) -> None:
    """Give the tokens that a configuration names their new ids."""
    for name, value in config.to_dict().items():
        if name.endswith(ENDINGS) or name in LISTS:
            changed: Any = value
            if isinstance(value, list):
                changed = [new.get(one, one) for one in value if name not in LISTS or one in new]
            elif _is_id(value):
                changed = new.get(value, value)
            setattr(config, name, changed)


def parts_of(config: PreTrainedConfig | GenerationConfig) -> list[Any]:
    """Return a configuration and that of its text model, which may be the same."""
    if isinstance(config, GenerationConfig):
        return [config]
    text = config.get_text_config()
    return [config] if text is config else [config, text]


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
