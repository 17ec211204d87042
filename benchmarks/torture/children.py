"""Runs in child processes that can be killed at any moment, forked from one that has imported everything.

Forking spares each of hundreds of runs the seconds that importing torch takes.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import trl  # noqa: F401  # imports what transformers would import lazily in every child

import loraprune.pipeline  # noqa: F401
from loraprune import cli

WRITES = ("os.rename", "os.mkdir", "os.remove", "os.rmdir")


@dataclass(frozen=True)
class Trap:
    """Ends the process by SIGKILL some time after its n-th act of writing below a folder."""

    folder: Path
    act: int
    seconds: float = 0.0


@dataclass(frozen=True)
class Ended:
    """How a child ended."""

    code: int
    """exit code, or minus the signal"""
    stderr: str
    seconds: float
    writes: int = 0
    """acts of writing seen by a trap that was not sprung"""


def start(arguments: Sequence[str], log: Path, prepare: Callable[[], object]) -> int:
    """Fork a child that runs the command line after `prepare`, and return its number."""
    sys.stdout.flush()
    sys.stderr.flush()
    number = os.fork()
    if number:
        return number
    code = 99
    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        os.close(handle)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        torch.set_num_threads(1)
        prepare()
        code = cli.main(arguments)
    finally:
        sys.stderr.flush()
        os._exit(code)


def run(
    arguments: Sequence[str],
    log: Path,
    *,
    trap: Trap | None = None,
    after: tuple[int, float] | None = None,
    prepare: Callable[[], object] = lambda: None,
) -> Ended:
    """Run the command line in a child; `after` is a signal and the seconds to wait before sending it."""
    counter = log.with_suffix(".writes")
    began = time.perf_counter()
    child = start(arguments, log, lambda: (prepare(), spring(trap, counter) if trap else None))
    if after:
        time.sleep(after[1])
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, after[0])
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    writes = int(counter.read_text()) if trap and counter.is_file() else 0
    return Ended(status, log.read_text(encoding="utf-8", errors="replace"), time.perf_counter() - began, writes)


def spring(trap: Trap, counter: Path) -> None:
    """Count the acts of writing in this process, and kill it at the one that the trap names."""
    seen = 0

    def kill() -> None:
        time.sleep(trap.seconds)
        os.kill(os.getpid(), signal.SIGKILL)

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        writing = event in WRITES or (
            event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        )
        if not (writing and str(arguments[0]).startswith(str(trap.folder))):
            return
        seen += 1
        if trap.act == 0:
            with os.fdopen(os.open(counter.with_suffix(".tmp"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "w") as file:
                file.write(str(seen))
            os.replace(counter.with_suffix(".tmp"), counter)
        elif seen == trap.act and trap.seconds:
            threading.Thread(target=kill, daemon=True).start()
        elif seen == trap.act:
            kill()

    sys.addaudithook(watch)
