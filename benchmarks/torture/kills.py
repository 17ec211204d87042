"""SIGKILL at random moments of real prune runs, half of them while something is written: after --resume, the same bytes."""

from __future__ import annotations

import random
import shutil
import signal
from pathlib import Path

from benchmarks.torture import children
from benchmarks.torture.cases import RUNS, Row, command, digests, inputs, tree
from benchmarks.torture.children import Trap

STEPS = ["--steps", "8"]
ROUNDS = 4
"""kills of each kind for each run"""
SLOWEST_WRITE = 0.02
"""seconds after an act of writing within which the kill comes"""


def run(root: Path, *, short: bool) -> list[Row]:
    """Return a row for every run and kind of moment."""
    draw, given, rows = random.Random(0), inputs(root), []
    chosen = dict(list(RUNS.items())[:2]) if short else RUNS
    for number, (name, options) in enumerate(chosen.items()):
        target = Victim(root / str(number), given, [*options, *STEPS], draw)
        for kind in ("any moment", "while writing"):
            row = Row("kills", f"{name}: {kind}")
            while row.tried < (1 if short else ROUNDS):
                kills, losses = target.kill(kind)
                row.tried += kills
                row.losses += losses
            rows.append(row)
            print(f"{row.case}: {row.tried} kills, {len(row.losses)} lost", flush=True)
    return rows


class Victim:
    """One kind of run, and what it gives when nobody kills it."""

    def __init__(self, folder: Path, given: Path, options: list[str], draw: random.Random) -> None:
        folder.mkdir()
        self.folder, self.draw, self.output = folder, draw, folder / "place" / "out"
        self.command = command(given, self.output, options)
        whole = children.run(self.command, folder / "log", trap=Trap(self.output.parent, act=0))
        assert whole.code == 0, whole.stderr
        self.seconds, self.writes, self.expected = whole.seconds, whole.writes, digests(self.output)
        self.old = folder / "old"
        shutil.copytree(self.output, self.old)
        (self.old / "notes.txt").write_text("what stood there before")
        assert "model.safetensors" in self.expected

    def kill(self, kind: str) -> tuple[int, list[str]]:
        """Kill a run, perhaps its resumed run too, let it end; return how often it was killed and what was lost."""
        shutil.rmtree(self.output.parent)
        self.output.parent.mkdir()
        overwrite = self.draw.random() < 0.5
        if overwrite:
            shutil.copytree(self.old, self.output)
        arguments = [*self.command, *(["--overwrite"] if overwrite else [])]
        kills, losses, where = 0, [], ""
        for turn in range(self.draw.choice((1, 1, 2))):
            how = self._moment(kind)
            where += f" {how}"
            ended = children.run(arguments if turn == 0 else [*arguments, "--resume"], self.folder / "log", **how)
            kills += ended.code == -signal.SIGKILL
            if ended.code not in (0, -signal.SIGKILL):
                losses.append(f"ended with {ended.code}: {ended.stderr[-300:]}")
            if self.output.exists() and digests(self.output) != self.expected:
                if not overwrite or tree(self.output) != tree(self.old):
                    losses.append("something half-written stands where the result belongs")
            elif overwrite and not self.output.exists():
                losses.append("what stood there before is gone")
            if self._is_done():  # killed behind the last act that matters: there is nothing to resume
                break
        if not self._is_done():
            ended = children.run([*arguments, "--resume"], self.folder / "log")
            if ended.code != 0:
                losses.append(f"the resumed run ended with {ended.code}: {ended.stderr[-300:]}")
            elif [path.name for path in self.output.parent.iterdir()] != ["out"]:
                losses.append(f"left over: {sorted(path.name for path in self.output.parent.iterdir())}")
        if digests(self.output) != self.expected:
            losses.append("other bytes than those of an uninterrupted run")
        return kills, [f"{loss} (killed at{where})" for loss in losses]

    def _is_done(self) -> bool:
        """Say whether a new result stands there."""
        return self.output.exists() and not (self.output / "notes.txt").exists()

    def _moment(self, kind: str) -> dict[str, Trap | tuple[int, float]]:
        if kind == "any moment":
            return {"after": (signal.SIGKILL, self.draw.uniform(0, self.seconds))}
        delay = self.draw.choice((0.0, self.draw.uniform(0, SLOWEST_WRITE)))
        return {"trap": Trap(self.output.parent, self.draw.randint(1, self.writes), delay)}
