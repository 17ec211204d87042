"""Count what a reader opens who follows `loraprune prune` from the command line to the saved folder.

One short run of the demo is traced. Every function counts where it is called first, as it is read once. The trail is the sequence of
their files: `files` are the different ones, and a `return` is a step of the trail to a file that was open before.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from types import CodeType, FrameType

import loraprune
from loraprune import cli

SOURCE = Path(loraprune.__file__).parent


def trail(arguments: list[str]) -> list[str]:
    """Return the files of all functions of this package in the order of their first calls, repeats in a row left out."""
    seen: set[CodeType] = set()
    found: list[str] = []

    def note(frame: FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        if event != "call" or code in seen or not code.co_filename.startswith(f"{SOURCE}/"):
            return
        seen.add(code)
        if code.co_name != "<module>":
            name = str(Path(code.co_filename).relative_to(SOURCE))
            found.extend([name] if found[-1:] != [name] else [])

    sys.setprofile(note)
    try:
        cli.main(arguments)
    finally:
        sys.setprofile(None)
    return found


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        options = [
            "--data",
            "stdlib",
            "--output",
            f"{folder}/out",
            "--steps",
            "8",
            "--rows",
            "16",
            "--batch",
            "2",
            "--length",
            "64",
        ]
        files = trail(["prune", "--model", "demo", "--device", "cpu", "--html", "false", *options])
    returns = sum(name in files[:place] for place, name in enumerate(files))
    print(f"{len(set(files))} files, {returns} returns")
    if "--trail" in sys.argv:
        print(*files, sep="\n")


if __name__ == "__main__":
    main()
