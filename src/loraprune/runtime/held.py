"""Objects in a caller's memory, by the names under which a run refers to them.

A model's name leads to a folder with its weights, as a run reads them more than once. Knows nothing about what the objects are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Held:
    """Objects that are registered while a function of the package runs."""

    models: Mapping[str, str] = field(default_factory=dict)
    """name -> folder with config.json, and weights where they are needed"""
    processors: Mapping[str, str] = field(default_factory=dict)
    """model -> folder or hub id of the tokenizer or image processor to use instead of the model's own"""
    data: Mapping[str, Any] = field(default_factory=dict)
    """name -> a list of rows, a Dataset or a DatasetDict"""


_current: ContextVar[Held] = ContextVar("held", default=Held())  # noqa: B039 (its mappings are never written to)


def held() -> Held:
    """Return the objects that are registered now."""
    return _current.get()


@contextmanager
def holding(objects: Held) -> Iterator[None]:
    """Register objects by name within the block."""
    before = _current.set(objects)
    try:
        yield
    finally:
        _current.reset(before)
