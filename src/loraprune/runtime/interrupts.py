"""SIGINT and SIGTERM as exceptions, or kept until a step is over.

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
    """The signal that came while signals were kept, if one did."""

    def __init__(self) -> None:
        self.number: int | None = None

    def keep(self, number: int, frame: FrameType | None) -> None:
        """Remember the first signal; the second one ends the program at once."""
        if self.number is not None:
            raise Interrupted(number)
        self.number = number
        logger.warning(
            "%s: a checkpoint is written after this step; once more ends at once", signal.Signals(number).name
        )


_waiting: list[Pending] = []
"""where signals are kept now"""


def interrupt(number: int, frame: FrameType | None) -> None:
    """End the program by an exception, so that whatever was begun is tidied up."""
    raise Interrupted(number)


@contextmanager
def handled(handler: Callable[[int, FrameType | None], None] = interrupt) -> Iterator[None]:
    """Give both signals to `handler`; one that is ignored stays so, and other threads than the main one have no say."""
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
    """Act on signals at once in a part of a step that takes long, where they are kept until the step is over.

    Raises:
        Interrupted: in the middle of the block, or before it for a signal that is waiting.
    """
    if _waiting and _waiting[-1].number is not None:
        raise Interrupted(_waiting[-1].number)
    with handled(interrupt):
        yield


@contextmanager
def kept() -> Iterator[Pending]:
    """Keep signals instead of acting on them; whoever is given the result must look at it often.

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
