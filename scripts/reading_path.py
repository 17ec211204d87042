"""Count what a reader opens who follows `loraprune prune` through a run with the default options.

One short run of the demo is traced. What counts is what a reader reads to follow it, where it is called first, as it is read once:

- functions and methods that the run calls; what is defined inside another function is read with it;
- nothing that runs while a module is imported (bodies of classes, registrations): families, criteria, tasks and formats that the
  run does not use are imported, and nobody has to open them to follow it.

The trail is the sequence of the files: `files` are the different ones, and a `return` is a step of the trail to a file that was
open before. The last line follows everything, from the command line on. The other lines follow the run alone, from `pipeline.run` on, for a
reader who opens what is called so many calls below it, and takes the rest by its name and first line. `--trail N` prints a trail.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType

import loraprune
from loraprune import cli, pipeline

SOURCE = Path(loraprune.__file__).parent
OPTIONS = (
    "--model", "demo", "--data", "stdlib", "--device", "cpu", "--html", "false", "--steps", "8", "--rows", "64", "--batch", "16",
    "--length", "32", "--local", "3", "--calibration", "1024",
)  # fmt: skip
BEFORE = -1
"""depth of what runs before `pipeline.run` is called, or after it"""


def stack(frame: FrameType | None) -> list[CodeType]:
    """Return the code of this package that runs in a frame and in those that called it."""
    found = []
    while frame is not None:
        if frame.f_code.co_filename.startswith(f"{SOURCE}/"):
            found.append(frame.f_code)
        frame = frame.f_back
    return found


def inside(code: CodeType) -> Iterator[CodeType]:
    """Yield the code of a function and of all that is defined in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from inside(constant)


def calls(arguments: list[str]) -> list[tuple[str, int]]:
    """Return file and depth below `pipeline.run` of all functions of this package, in the order of their first calls."""
    seen: set[CodeType] = set()
    found: list[tuple[str, int]] = []

    def note(frame: FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        if event != "call" or code in seen or not code.co_filename.startswith(f"{SOURCE}/"):
            return
        callers = stack(frame)
        if any(each.co_name == "<module>" for each in callers):  # a module is being imported
            return
        seen.update(inside(code))
        run = pipeline.run.__code__
        found.append(
            (str(Path(code.co_filename).relative_to(SOURCE)), callers.index(run) if run in callers else BEFORE)
        )

    sys.setprofile(note)
    try:
        cli.main(arguments)
    finally:
        sys.setprofile(None)
    return found


def trail(files: Iterator[str]) -> list[str]:
    """Return a sequence of files, repeats in a row left out."""
    found: list[str] = []
    for name in files:
        found.extend([name] if found[-1:] != [name] else [])
    return found


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        called = calls(["prune", "--output", f"{folder}/out", *OPTIONS])
    deepest = max(depth for _, depth in called)
    trails = {
        str(most): trail(name for name, depth in called if BEFORE < depth <= most) for most in range(1, deepest + 1)
    }
    trails["everything"] = trail(name for name, _ in called)
    for depth, files in trails.items():
        returns = sum(name in files[:place] for place, name in enumerate(files))
        print(f"{depth}: {len(set(files))} files, {returns} returns")
    if "--trail" in sys.argv:
        print(*trails[sys.argv[-1]], sep="\n")


if __name__ == "__main__":
    main()
