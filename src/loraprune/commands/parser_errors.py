"""Describe what is wrong with the words of a command line: one line each, with the value and what is needed.

Names and values are checked here against the options of the command; messages of the parser are not used.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from loraprune.commands.config_file import read_config
from loraprune.config import recipes
from loraprune.config.base import dashed
from loraprune.config.values import wrong_value
from loraprune.errors import nearest


@dataclass(frozen=True, slots=True)
class Setting:
    """One option as it is set on the command line or by a key of a file."""

    name: str
    words: Sequence[str]
    """words that set it on a command line"""
    value: Any
    """its value; empty if none is given"""

    @property
    def option(self) -> str:
        """Return the option that it sets or appends to: `grid` for `grid.ratio`, `batches` for `batches+`."""
        return self.name.removesuffix("+").partition(".")[0]

    @property
    def is_key(self) -> bool:
        """Return whether a file sets it, which writes names with underscores."""
        return self.words[0].startswith("--config=")

    def problem(self, hint: Any) -> str:
        """Return what is wrong with the value for an option of type `hint`."""
        return f"--{dashed(self.option)}{wrong_value(hint, [self.value] if self.name.endswith('+') else self.value)}"


def unknown_command(word: str, commands: Collection[str]) -> str:
    """Return the message for an unknown command."""
    name = word.removeprefix("--")
    return f"unknown command {name!r}{nearest(name, commands)}: see `loraprune --help`"


def unknown_option(setting: Setting, verb: str, options: Collection[str]) -> str:
    """Return the message for an option that a command does not have."""
    name, options = setting.name, list(options)
    if not setting.is_key:
        name, options = dashed(name), list(map(dashed, options))
    return f"unknown option {name!r}{nearest(name, options)}: see `loraprune {verb} --help`"


def missing_options(names: Sequence[str], verb: str) -> str:
    """Return the message for required options that are missing."""
    return f"missing {' '.join('--' + dashed(name) for name in names)}: see `loraprune {verb} --help`"


def settings_of(option: Sequence[str]) -> list[Setting]:
    """Return the settings that the words of an option make; every key of a file is one setting.

    Raises:
        ConfigError: if it names a file or recipe that cannot be read.
    """
    name, equals, value = option[0].removeprefix("--").partition("=")
    if name == "recipe" and value:
        recipes.path(value)
    if name == "config" and value:
        return [
            Setting(key, [f"--config={yaml.safe_dump({key: one}, default_flow_style=True)}"], one)
            for key, one in read_config(value).items()
        ]
    given = value if equals else " ".join(option[1:])
    return [Setting(name, option, _listed(given))]


def _listed(text: str) -> Any:
    """Return a list that a word spells out, or the word itself."""
    try:
        value = yaml.safe_load(text) if text.startswith("[") else text
    except yaml.YAMLError:
        return text
    return value if isinstance(value, list) else text


def split_words(words: Sequence[str]) -> list[list[str]]:
    """Return the words of each option together, and each word that belongs to none."""
    groups: list[list[str]] = []
    for word in words:
        waits = bool(groups) and groups[-1][0].startswith("--") and "=" not in groups[-1][0] and len(groups[-1]) == 1
        if waits and not word.startswith("--"):
            groups[-1].append(word)
        else:
            groups.append([word])
    return groups
