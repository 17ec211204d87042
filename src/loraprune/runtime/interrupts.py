"""Handle SIGINT and SIGTERM as exceptions, or defer them until a step is finished.

Knows nothing about torch, training or files.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)

logger = logging.getLogger(__name__)


class Interrupted(KeyboardInterrupt):
    """A signal that ends the program; `code` is the exit code that shells expect, 130 or 143."""

    def __init__(self, number: int, message: str = "") -> None:
        super().__init__(message)
        self.number = number

    @property
    def code(self) -> int:
        """Return 128 + the signal's number."""
        return 128 + self.number


class Pending:
    """The signal that arrived while signals were deferred, if any."""

    def __init__(self) -> None:
        self.number: int | None = None

    def keep(self, number: int, frame: FrameType | None) -> None:
        """Remember the first signal; the second one ends the program at once."""
        if self.number is not None:
            raise Interrupted(number)
        self.number = number
        logger.warning(
            "%s: the run stops after this step and writes a checkpoint; a second signal ends it at once",
            signal.Signals(number).name,
        )


_waiting: list[Pending] = []
"""the store of deferred signals that is active now"""


def interrupt(number: int, frame: FrameType | None) -> None:
    """End the program by an exception, so that unfinished work is cleaned up."""
    raise Interrupted(number)


@contextmanager
def handled(handler: Callable[[int, FrameType | None], None] = interrupt) -> Iterator[None]:
    """Install `handler` for both signals; an ignored signal stays ignored, and only the main thread can install handlers."""
    former = {}
    if threading.current_thread() is threading.main_thread():
        former = {number: signal.getsignal(number) for number in SIGNALS}
        former = {number: found for number, found in former.items() if found not in (signal.SIG_IGN, None)}
    for number in former:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, found in former.items():
            signal.signal(number, found)


@contextmanager
def at_once() -> Iterator[None]:
    """Act on signals at once in a long part of a step, within which they are otherwise deferred.

    Raises:
        Interrupted: in the middle of the block, or before it for a signal that is waiting.
    """
    if _waiting and _waiting[-1].number is not None:
        raise Interrupted(_waiting[-1].number)
    with handled(interrupt):
        yield


@contextmanager
def kept() -> Iterator[Pending]:
    """Defer signals instead of acting on them; the caller must check the result often.

    Raises:
        Interrupted: at the end, for a signal that was overlooked.
    """
    pending = Pending()
    _waiting.append(pending)
    try:
        with handled(pending.keep):
            yield pending
    finally:
        _waiting.remove(pending)
    if pending.number is not None:
        raise Interrupted(pending.number)
