"""Running cases and judging how they end.

A case holds if the command ends in time with exit code 2, one line for each problem, no traceback and nothing new on the
disk; or with 0, where the damage left the input good. Damage to weights that leaves a valid file with finite numbers cannot be
told from training: such a case ends with 0 too, and is counted apart.
"""

from __future__ import annotations

import contextlib
import io
import logging
import random
import resource
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
from benchmarks.fuzz.inputs import make_good, spoil

from loraprune import cli
from loraprune.commands.compare import run as compare_run

SECONDS = 60
"""limit of a case; one that is refused takes less than one, a run that ends well a few"""
MEMORY_BYTES = 12 << 30
"""address space beyond what the libraries take: more is asked for only by a damaged size that nobody checked"""


class TimeLimit(BaseException):
    """A case took too long; no handler for ordinary errors may catch it."""


@dataclass(frozen=True)
class Outcome:
    """How a case ended."""

    kind: str
    command: str
    damage: str
    code: int | None
    seconds: float
    error: str
    lost: str
    """why the case does not hold; empty if it does"""

    @property
    def end(self) -> str:
        """Return how it ended, in words."""
        return "lost" if self.lost else "refused" if self.code else "still good"


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeLimit in a block that takes longer."""

    def stop(*_: object) -> None:
        raise TimeLimit

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def content(root: Path) -> dict[str, bytes]:
    """Return every file below a folder."""
    return {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() else b"" for path in sorted(root.rglob("*"))
    }


def try_case(good: Path, number: int, *, seed: int, seconds: float = SECONDS) -> Outcome:
    """Run one case in a copy of the good folder."""
    draw = random.Random(f"{seed}:{number}")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "case"
        shutil.copytree(good, root)
        kind, command, how, line = spoil(root, number, draw)
        before, began, code, lost = content(root), time.perf_counter(), None, ""
        out, err = io.StringIO(), io.StringIO()
        handlers, logging.getLogger().handlers = (
            logging.getLogger().handlers,
            [],
        )  # the command makes one for this stderr
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), time_limit(seconds):
                code = cli.main(line)
        except TimeLimit:
            lost = f"took more than {seconds:.0f} s"
        except BaseException as error:  # a traceback, or an exit that is no return
            lost = f"{type(error).__name__}: {error}"
        finally:
            logging.getLogger().handlers = handlers
        lost = lost or verdict(code, out.getvalue(), err.getvalue(), before, content(root))
        words = err.getvalue().strip().replace(str(root), "")
        return Outcome(kind, command, how, code, time.perf_counter() - began, words[-400:], lost)


def verdict(code: int | None, out: str, err: str, before: Mapping[str, bytes], after: Mapping[str, bytes]) -> str:
    """Return why an end is not as it should be, or nothing."""
    if code == 0:
        return ""
    if code != 2:
        return f"exit code {code}"
    if "Traceback" in err or not all(line.startswith("loraprune: ") for line in err.splitlines()) or not err:
        return "no plain line on stderr"
    if out:
        return "a result on stdout"
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    return f"left or changed {changed[:3]}" if changed else ""


def outcomes_of(root: Path, cases: int, *, seed: int = 0, first: int = 0) -> Iterator[Outcome]:
    """Run cases below an empty folder; cells of a grid that is still good are not run."""
    good = root / "good"
    good.mkdir()
    make_good(good)
    taken, cells = resource.getrlimit(resource.RLIMIT_AS), compare_run.run_cells
    present = psutil.Process().memory_info().vms
    compare_run.run_cells = lambda *_, **__: None
    resource.setrlimit(resource.RLIMIT_AS, (present + MEMORY_BYTES, taken[1]))
    try:
        for number in range(first, first + cases):
            yield try_case(good, number, seed=seed)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, taken)
        compare_run.run_cells = cells
