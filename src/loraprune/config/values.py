"""Values of options: parse one like the command line does, and describe what is needed instead of a wrong one.

Everything follows from the types of the options.
"""

from __future__ import annotations

import argparse
import math
import re
import types
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

from loraprune.errors import ConfigError, nearest

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

    Fraction = float
else:

    class Fraction(float):
        """The type of an option that is a fraction, which may be given as a percentage: 0.2 or 20%. Its value is a plain float."""


WORDS = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    Fraction: "a fraction or a percentage, such as 0.2 or 20%",
    bool: "true or false",
    list: "a list, such as [1, 2]",
    dict: "a mapping, such as {name: value}",
}
"""type -> description of a value"""


BYTES = re.compile(r"(\d+(?:\.\d+)?) ?([KMGT]?)(i?)B?", re.IGNORECASE)
"""a number, a prefix, and the i of prefixes that are powers of 1024"""


class WrongValueError(ValueError):
    """A value that an option cannot have; the text is " VALUE: what is needed instead"."""


def read_value(hint: Any, value: object) -> Any:
    """Return a value converted to the type `hint` of an option.

    Raises:
        WrongValueError: if it has another type.
    """
    try:
        return _reader(hint).parse_object({"value": value})["value"]
    except argparse.ArgumentError:
        raise WrongValueError(wrong_value(hint, value)) from None


def wrong_value(hint: Any, value: object) -> str:
    """Return " VALUE: what is needed instead" for a value that an option of type `hint` cannot have."""
    inner = next((get_args(one) for one in _members(hint) if get_origin(one) is list), ())
    if inner and isinstance(value, list):
        for each in value:
            try:
                read_value(inner[0], each)
            except WrongValueError as error:
                return str(error)
    choices = [str(choice) for one in _members(hint) if get_origin(one) is Literal for choice in get_args(one)]
    kinds = [f"one of {', '.join(choices)}"] if len(choices) > 1 else list(choices)
    plain = [get_origin(one) or one for one in _members(hint)]
    kinds += [WORDS[one] for one in plain if one in WORDS]
    given = f" {value}" if value != "" else ""
    return f"{given}{nearest(str(value), choices)}: {' or '.join(kinds)} is needed"


def parse_count(text: str) -> int:
    """Read a number of parameters such as 600M, 1.2B, 75k or 1000000.

    Raises:
        ConfigError: if it is not a number of at least 1.
    """
    scale = {"k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9}.get(text[-1:].lower(), 1)
    try:
        count = float(text[:-1] if scale > 1 else text) * scale
    except ValueError:
        count = math.nan
    if not (count >= 1 and math.isfinite(count)):
        raise ConfigError(f"--parameters {text}: a count such as 600M, 1.2B or 250000 is needed")
    return round(count)


def parse_bytes(text: str, option: str) -> int:
    """Read a number of bytes such as 200MB (millions) or 1.5GiB (1024 MiB), the value of --`option`.

    Raises:
        ConfigError: if it is not a number of at least 1.
    """
    match = BYTES.fullmatch(text)
    count = float(match[1]) * (1024 if match[3] else 1000) ** " KMGT".index(match[2].upper() or " ") if match else 0
    if count < 1:
        raise ConfigError(f"--{option} {text}: a number of bytes such as 200MB, 1.5GB or 500MiB is needed")
    return round(count)


def takes_text(hint: Any) -> bool:
    """Return whether an option of type `hint` accepts any text."""
    return str in _members(hint)


def has_choices(hint: Any) -> bool:
    """Return whether an option of type `hint` accepts some words."""
    return any(get_origin(one) is Literal for one in _members(hint))


def _members(hint: Any) -> Iterator[Any]:
    """Yield the types that a union allows, or the type itself."""
    if get_origin(hint) in (Union, types.UnionType):
        for one in get_args(hint):
            yield from _members(one)
    else:
        yield hint


def read_fraction(value: object) -> float:
    """Read a fraction such as 0.2, or a percentage such as 20%.

    Raises:
        ValueError: if it is neither.
    """
    if isinstance(value, str) and value.endswith("%"):
        return float(value[:-1]) / 100
    if isinstance(value, bool) or not isinstance(value, str | float | int):
        raise ValueError(value)
    return float(value)


@cache
def register_types() -> None:
    """Make the parser know the types of options that are not Python's."""
    from jsonargparse.typing import register_type  # not needed for help

    register_type(Fraction, float, read_fraction, type_check=lambda value, _: type(value) is float)


@cache
def _reader(hint: Any) -> ArgumentParser:
    """Return a parser of one option."""
    from jsonargparse import ArgumentParser  # not needed for help

    register_types()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=hint)
    return parser
