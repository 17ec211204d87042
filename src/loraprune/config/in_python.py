"""Texts about options, rewritten for Python: `ratio=1.5`, not `--ratio 1.5`.

Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, get_args, get_origin, get_type_hints

from loraprune.errors import LoraPruneError, problems_of
from loraprune.runtime.held import held

COMMAND = re.compile(r"(`loraprune [^`]*`)")
"""commands, which keep their dashes"""
FLAG = re.compile(r"(?P<before>leave )?(?<![\w-])--(?P<name>[a-z][a-z_-]*[a-z])(?: (?P<value>[\w.:]*\w))?")


@contextmanager
def spoken_in_python(values: Mapping[str, Any], kind: type[Any]) -> Iterator[None]:
    """Rewrite errors of the block to name arguments: `ratio=1.5`, not `--ratio 1.5`.

    Args:
        values: Option -> what it is set to.
        kind: The class that the options are fields of.
    """
    try:
        yield
    except LoraPruneError as error:
        texts = [in_python(text, values, kind) for text in problems_of(error)]
        raise type(error)(*texts).with_traceback(error.__traceback__) from None


def in_python(text: str, values: Mapping[str, Any], kind: type[Any]) -> str:
    """Return a text about options rewritten for arguments; commands in backticks are kept."""
    return "".join(
        part if COMMAND.fullmatch(part) else _part_in_python(part, values, kind) for part in COMMAND.split(text)
    )


def _part_in_python(text: str, values: Mapping[str, Any], kind: type[Any]) -> str:
    labels = {*held().models, *held().data}
    for name, value in values.items():
        for each in value if isinstance(value, list) else [value]:
            words = "null" if each is None else str(each).lower() if isinstance(each, bool) else str(each)
            instead = f"{name} ({each})" if each in labels else f"{name}={each!r}"
            for flag in {name, name.replace("_", "-")}:
                parts = re.split(rf"--{flag} {re.escape(words)}(?![\w.])", text)
                text = instead.join(parts)
    hints = get_type_hints(kind)
    return FLAG.sub(lambda match: _argument(match, hints), text)


def _argument(match: re.Match[str], hints: Mapping[str, Any]) -> str:
    """Return a flag as an argument, with its value if one follows."""
    name, word, before = match["name"].replace("-", "_"), match["value"], match["before"] or ""
    hint = hints.get(name)
    options = [one for one in (hint, *get_args(hint)) if get_origin(one) is Literal]
    choices = {str(choice): repr(choice) for one in options for choice in get_args(one)} | {
        "true": "True",
        "false": "False",
    }
    if word is not None and (word in choices or re.fullmatch(r"[\d.]+(e-?\d+)?", word)):
        return f"{before}{name}={choices.get(word, word)}"
    behind = f" {word}" if word is not None else ""
    return f"{before}{name}{'=True' if hint is bool and not before else ''}{behind}"
