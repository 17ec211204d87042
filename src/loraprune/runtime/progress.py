"""Progress on stderr: one bar for each phase of a run, with the time left; lines instead where stderr is not a terminal."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from loraprune.runtime import launch

SECONDS = 30.0
"""between two lines of a phase where there is no terminal; shorter phases write none"""
Item = TypeVar("Item")
Advance = Callable[..., None]
"""called with the units of work done since the last call, and `state`, a few words on how things are"""

logger = logging.getLogger(__name__)
_open: list[Progress] = []
"""the bars on screen: phases within phases share one display, as two would overwrite each other"""


@contextmanager
def phase(name: str, total: int) -> Iterator[Advance]:
    """Show a phase of `total` units of work while the block runs."""
    if not launch.is_first():
        yield lambda done=1, state="": None
    elif sys.stderr.isatty():
        with _display() as display:
            task = display.add_task(name, total=total, state="")
            try:
                yield lambda done=1, state="": display.update(task, advance=done, state=state)
            finally:
                display.remove_task(task)
    else:
        yield _Lines(name, total)


def shown(items: Collection[Item], name: str) -> Iterator[Item]:
    """Yield items, each a unit of work of a phase."""
    with phase(name, len(items)) as advance:
        for item in items:
            yield item
            advance(1)


@contextmanager
def _display() -> Iterator[Progress]:
    if _open:
        yield _open[-1]
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[state]}"),
               TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as display:
        _open.append(display)
        try:
            yield display
        finally:
            _open.remove(display)


class _Lines:
    """Writes a line now and then."""

    def __init__(self, name: str, total: int) -> None:
        self.name, self.total, self.done = name, total, 0
        self.began = self.last = time.monotonic()

    def __call__(self, done: int = 1, state: str = "") -> None:
        self.done += done
        now = time.monotonic()
        if now - self.last < SECONDS:
            return
        self.last = now
        left = (now - self.began) / max(1, self.done) * (self.total - self.done)
        words = f"  {state}" if state else ""
        logger.info("%s: %d of %d%s, about %d s left", self.name, self.done, self.total, words, round(left))
