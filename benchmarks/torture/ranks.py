"""Two processes that train one model, and one of them is killed: the other ends with an error, and nothing is lost."""

from __future__ import annotations

import random
import shutil
import signal
import time
from pathlib import Path

from benchmarks.torture.cases import Row, command, digests, inputs
from tests.distributed.processes import Ended, die, during_step
from tests.distributed.processes import run as run_processes

from loraprune import cli

ROUNDS = 6
STEPS = 12
CASES = {"DDP, shrinking": [], "DDP, masked": ["--shrink", "false"]}
SECONDS = 120
"""after which the survivor is taken for one that hangs"""


def run(root: Path, *, short: bool) -> list[Row]:
    """Return a row for every kind of run."""
    given, draw = inputs(root), random.Random(1)
    rows = []
    for case, options in CASES.items():
        row = Row("ranks", f"missing rank: {case}")
        output = root / "place" / "out"
        arguments = command(given, output, ["--save", "3", *options])
        expected = undisturbed(arguments, output)
        for _ in range(1 if short else ROUNDS):
            row.tried += 1
            row.losses += missing(
                arguments, output, victim=draw.randrange(2), step=draw.randint(1, STEPS), expected=expected
            )
        rows.append(row)
        print(f"{row.case}: {row.tried} tried, {len(row.losses)} lost", flush=True)
    return rows


def undisturbed(arguments: list[str], output: Path) -> dict[str, str]:
    """Return the digests of what two processes leave that nobody disturbs."""
    fresh(output)
    ended = run_processes(lambda rank: cli.main(arguments), output.parent)
    assert ended.codes == [0, 0], ended.stderr
    return digests(output)


def fresh(output: Path) -> None:
    """Leave nothing of the last run."""
    shutil.rmtree(output.parent, ignore_errors=True)
    output.parent.mkdir()


def missing(arguments: list[str], output: Path, *, victim: int, step: int, expected: dict[str, str]) -> list[str]:
    """Kill one process during a step; what a resumed run leaves has the bytes of an undisturbed one."""
    fresh(output)
    began = time.monotonic()
    ended = killed(arguments, output.parent, victim, step)
    lost = [] if ended.codes[victim] == -signal.SIGKILL else [f"the victim ended with {ended.codes[victim]}"]
    lost += [] if ended.codes[1 - victim] == 1 else [f"the survivor ended with {ended.codes[1 - victim]}"]
    lost += ["the survivor hung"] if time.monotonic() - began > SECONDS else []
    lost += ["a result all the same"] if output.exists() else []
    resumed = run_processes(lambda rank: cli.main([*arguments, "--resume"]), output.parent)
    lost += (
        [] if resumed.codes == [0, 0] else [f"the resumed run ended with {resumed.codes}: {resumed.stderr[0][-300:]}"]
    )
    lost += [] if digests(output) == expected else ["other bytes than those of an undisturbed run"]
    return [f"{each} (process {victim} killed in step {step})" for each in lost]


def killed(arguments: list[str], folder: Path, victim: int, step: int) -> Ended:
    """Run two processes of which one ends without a word."""

    def work(rank: int) -> int:
        if rank == victim:
            during_step(step, die)
        return cli.main(arguments)

    return run_processes(work, folder)
