"""Two processes that train one model, disturbed: one is killed in a step or while it writes, or their newest checkpoint is torn.

The other ends with an error, and what both leave once they go on has the bytes of a run that nobody disturbed.
"""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.torture.cases import Row, command, damage, digests, inputs
from benchmarks.torture.children import Trap, spring
from tests.runtime.distributed.processes import FSDP2, Ended, die, during_step
from tests.runtime.distributed.processes import run as run_processes

from loraprune import cli

STEPS, EVERY = 12, 3
"""of a run, and between its checkpoints"""
SECONDS = 120
"""after which the survivor is taken for one that hangs"""


@dataclass(frozen=True)
class Kind:
    """A kind of run."""

    options: Sequence[str] = ()
    launcher: Mapping[str, str] | None = None
    faults: Mapping[str, int] | None = None
    """how often each is tried"""


KINDS = {
    "DDP, shrinking": Kind(faults={"missing rank": 6, "torn checkpoint": 3}),
    "DDP, masked": Kind(["--shrink", "false"], faults={"missing rank": 6}),
    "FSDP2, shrinking": Kind(
        launcher=FSDP2, faults={"missing rank": 4, "killed while writing": 6, "torn checkpoint": 3}
    ),
    "FSDP2, masked": Kind(["--shrink", "false"], FSDP2, {"missing rank": 2, "killed while writing": 2}),
}


def run(root: Path, *, short: bool) -> list[Row]:
    """Return a row for every kind of run and fault."""
    given, draw, rows = inputs(root), random.Random(1), []
    for name, kind in KINDS.items():
        pair = Pair(root / "place" / "out", given, kind, draw)
        for fault, times in (kind.faults or {}).items():
            row = Row("ranks", f"{fault}: {name}")
            for _ in range(1 if short else times):
                row.tried += 1
                row.losses += pair.disturb(fault)
            rows.append(row)
            print(f"{row.case}: {row.tried} tried, {len(row.losses)} lost", flush=True)
    return rows


class Pair:
    """A run in two processes to disturb, and what it gives when nobody does."""

    def __init__(self, output: Path, given: Path, kind: Kind, draw: random.Random) -> None:
        self.output, self.partial, self.draw, self.launcher = (
            output,
            output.with_name("out.partial"),
            draw,
            kind.launcher,
        )
        self.arguments = command(given, output, ["--save", str(EVERY), *kind.options])
        self.counter = output.parent.parent / "writes"
        self._clean()
        ended = self._run(lambda rank: None if rank else spring(Trap(output.parent, act=0), self.counter))
        assert ended.codes == [0, 0], ended.stderr
        self.expected, self.writes = digests(output), int(self.counter.read_text())

    def disturb(self, fault: str) -> list[str]:
        """Cause a fault, let both go on; return what was lost."""
        faults = {
            "missing rank": self._missing, "killed while writing": self._killed_writing, "torn checkpoint": self._torn
        }  # fmt: skip
        self._clean()
        where, lost = faults[fault]()
        return [f"{each} ({where})" for each in lost]

    def _missing(self) -> tuple[str, list[str]]:
        """Kill either process during a step."""
        victim, step = self.draw.randrange(2), self.draw.randint(1, STEPS)
        lost = self._one_dies(victim, lambda: during_step(step, die))
        lost += ["a result all the same"] if self.output.exists() else []
        return f"process {victim} killed in step {step}", lost + self._go_on()[1]

    def _killed_writing(self) -> tuple[str, list[str]]:
        """Kill the process that writes checkpoints and the result at one of its acts of writing."""
        trap = Trap(self.output.parent, self.draw.randint(1, self.writes))
        lost = self._one_dies(0, lambda: spring(trap, self.counter))
        if self.output.exists() and digests(self.output) != self.expected:
            lost.append("something half-written stands where the result belongs")
        return f"killed at act {trap.act} of {self.writes}", lost + self._go_on()[1]

    def _torn(self) -> tuple[str, list[str]]:
        """Damage the newest checkpoint: both pass it by for the one before."""
        step = self.draw.randint(2 * EVERY + 1, STEPS)
        lost = self._one_dies(1, lambda: during_step(step, die))
        newest = sorted(self.partial.glob("step-*"))[-1]
        what = damage(newest, self.draw)
        told, more = self._go_on()
        named = [] if f"{newest} is passed by" in told else ["not told"]
        return f"{what} of {newest.name}", lost + named + more

    def _one_dies(self, victim: int, prepare: Callable[[], object]) -> list[str]:
        """Run both, of which one is killed by what prepares it; the other ends with an error, unless all was done."""
        began = time.monotonic()
        ended = self._run(lambda rank: prepare() if rank == victim else None)
        lost = [] if ended.codes[victim] == -signal.SIGKILL else [f"the victim ended with {ended.codes[victim]}"]
        fine = (0, 1) if self.output.exists() else (1,)
        lost += [] if ended.codes[1 - victim] in fine else [f"the survivor ended with {ended.codes[1 - victim]}"]
        return lost + (["the survivor hung"] if time.monotonic() - began > SECONDS else [])

    def _go_on(self) -> tuple[str, list[str]]:
        """Resume both unless a result is there; return what the first tells, and what was lost."""
        told, lost = "", []
        if not self.output.exists():
            resumed = self._run(lambda rank: None, "--resume")
            told = resumed.stderr[0]
            lost += [] if resumed.codes == [0, 0] else [f"the resumed run ended with {resumed.codes}: {told[-300:]}"]
        return told, lost + (
            [] if digests(self.output) == self.expected else ["other bytes than those of an undisturbed run"]
        )

    def _run(self, prepare: Callable[[int], object], *more: str) -> Ended:
        def work(rank: int) -> int:
            prepare(rank)
            return cli.main([*self.arguments, *more])

        return run_processes(work, self.output.parent, launcher=self.launcher)

    def _clean(self) -> None:
        """Leave nothing of the last run."""
        shutil.rmtree(self.output.parent, ignore_errors=True)
        self.output.parent.mkdir()
