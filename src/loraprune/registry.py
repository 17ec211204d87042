"""A registry for whatever can be added by name, such as families, criteria, tasks and formats: name -> registered value.

Knows nothing about what it holds.
"""

from __future__ import annotations

from typing import Generic, TypeVar

from loraprune.errors import LoraPruneError, nearest

Entry = TypeVar("Entry")


class Registry(Generic[Entry]):
    """A dictionary whose errors name the known entries and the nearest one."""

    def __init__(self, what: str, error: type[LoraPruneError], remedy: str = "") -> None:
        self.what, self.error, self.remedy = what, error, remedy
        self._entries: dict[str, Entry] = {}

    def add(self, name: str, entry: Entry) -> None:
        """Register an entry; a name can be taken once."""
        if not name.replace("-", "_").isidentifier():
            raise ValueError(f"{name!r} is no name for a {self.what}: letters, digits, '_' and '-' only")
        if name in self._entries:
            raise ValueError(f"the {self.what} {name!r} is registered already: choose another name")
        self._entries[name] = entry

    def get(self, name: str) -> Entry:
        """Return the entry of a name, or raise the registry's error with the nearest known name."""
        if name not in self._entries:
            known = ", ".join(sorted(self._entries))
            raise self.error(
                f"unknown {self.what} {name!r}{nearest(name, self._entries)}: known are {known}{self.remedy}"
            )
        return self._entries[name]

    def names(self) -> tuple[str, ...]:
        """Return all registered names, sorted."""
        return tuple(sorted(self._entries))
