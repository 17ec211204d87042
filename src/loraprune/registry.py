"""A registry for whatever can be added by name, such as families, criteria, tasks and formats: name -> registered value.

Knows nothing about what it holds.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, TypeVar

from loraprune.errors import LoraPruneError, nearest

Entry = TypeVar("Entry")

_ADDED: dict[str, set[str]] = {}


def added(what: str) -> frozenset[str]:
    """Return the names that registries of a kind have been given so far, without importing what would add more."""
    return frozenset(_ADDED.get(what, ()))


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """Return the line about a name that is not known."""
    names = sorted(known)
    return f"unknown {what} {name!r}{nearest(name, names)}: known are {', '.join(names)}"


class Registry(Generic[Entry]):
    """A dictionary whose errors name the known entries and the nearest one."""

    def __init__(self, what: str, error: type[LoraPruneError], remedy: str = "") -> None:
        self.what, self.error, self.remedy = what, error, remedy
        self._entries: dict[str, Entry] = {}

    def add(self, name: str, entry: Entry) -> None:
        """Register an entry; a name can be taken once."""
        if not name.replace("-", "_").isidentifier():
            raise ValueError(f"{name!r} is not a name for a {self.what}: use only letters, digits, '_' and '-'")
        if name in self._entries:
            raise ValueError(f"the {self.what} {name!r} is registered already: choose another name")
        self._entries[name] = entry
        _ADDED.setdefault(self.what, set()).add(name)

    def get(self, name: str) -> Entry:
        """Return the entry of a name, or raise the registry's error with the nearest known name."""
        if name not in self._entries:
            raise self.error(unknown(self.what, name, self._entries) + self.remedy)
        return self._entries[name]

    def names(self) -> tuple[str, ...]:
        """Return all registered names, sorted."""
        return tuple(sorted(self._entries))
