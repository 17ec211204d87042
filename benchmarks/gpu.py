"""Every check and measurement that needs a GPU, in one call of a few minutes.

    python benchmarks/gpu.py [--parts kernel steps ...] [--tiny] [--texts FOLDER] [--output FOLDER]

Each part is a process of its own with a time limit, and writes gpu_PART.json as it goes on: one that fails leaves what it had and the
end of its error, and takes no other along. Those that are timed run one after the other, each importing its libraries while the one
before it measures; the others run together at the end. --tiny runs everything that needs no GPU small, as a test.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TextIO

import psutil
from on_gpu.tables import TABLES

HERE = Path(__file__).resolve().parent
LINES = 25
"""of a failed part's output that are kept"""


@dataclass(frozen=True)
class Part:
    """A module of `on_gpu`, the seconds it may take, and whether it is timed and so has the machine to itself."""

    module: str
    seconds: int
    timed: bool = True


PARTS = {
    "kernel": Part("fused", 60),
    "speed": Part("speed", 90),
    "steps": Part("steps", 170),
    "training": Part("training", 150),
    "compile": Part("compiled", 90),
    "pretrained": Part("pretrained", 200, timed=False),
    "tests": Part("suite", 130, timed=False),
    "distributed": Part("launched", 110, timed=False),
}
ENVIRONMENT = {
    "PYTHONUNBUFFERED": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",  # large models that come and go leave no holes
}


def result_path(name: str, folder: Path) -> Path:
    """Return where a part's result is."""
    return folder / f"gpu_{name}.json"


def carry_out(name: str, options: argparse.Namespace) -> None:
    """Be the process of a part: import, wait for a line on stdin, measure, and write down what there is."""
    import torch
    from helpers import common

    part: Any = importlib.import_module(f"on_gpu.{PARTS[name].module}")
    shapes: Any = importlib.import_module("on_gpu.shapes")
    if not sys.stdin.readline():  # whoever was to say so is gone
        return
    began = time.perf_counter()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    result: dict[str, Any] = {}

    def write(so_far: dict[str, Any], **more: Any) -> None:
        values = so_far | {"part_seconds": time.perf_counter() - began, **more}
        common.write(f"gpu_{name}", values, folder=options.output)

    try:
        for result in part.run(shapes.Chosen(device=device, tiny=options.tiny, texts=options.texts)):
            write(result, complete=False)
    except BaseException as error:
        write(result, complete=False, error=f"{type(error).__name__}: {error}"[-2000:])
        raise
    write(result, complete="skipped" not in result)


class Running:
    """The process of a part."""

    def __init__(self, name: str, options: argparse.Namespace, logs: Path) -> None:
        self.name, self.options, self.log = name, options, logs / f"{name}.log"
        result_path(name, options.output).unlink(missing_ok=True)
        command = [sys.executable, "-W", "ignore", str(HERE / "gpu.py"), "--be", name, "--output", str(options.output),
                   "--texts", str(options.texts), *(["--tiny"] if options.tiny else [])]  # fmt: skip
        paths = [str(HERE.parent / "src"), str(logs), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = ENVIRONMENT | os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
        self._out: TextIO = self.log.open("w")
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=self._out, stderr=subprocess.STDOUT, env=environment, text=True,
        )  # fmt: skip
        self.began = 0.0

    def go(self) -> None:
        """Let it measure once it has imported what it needs."""
        self.began = time.monotonic()
        assert self.process.stdin is not None
        with suppress(BrokenPipeError), self.process.stdin as line:  # broken if it has ended with an error
            line.write("go\n")

    def end(self) -> bool:
        """Wait until it is done or its time is up, print what it found, and say whether all is well."""
        left = self.began + PARTS[self.name].seconds - time.monotonic()
        try:
            self.process.wait(max(1.0, left))
        except subprocess.TimeoutExpired:
            self.kill()
        self._out.close()
        code = self.process.returncode
        path = result_path(self.name, self.options.output)
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if code:
            lines = self.log.read_text(errors="replace").splitlines()[-LINES:]
            told = f"exit code {code}" if code != -signal.SIGKILL else "killed: out of time or of memory"
            result |= {"complete": False, "error": result.get("error", told), "exit_code": code, "log": lines}
            path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        self._show(result)
        return not code

    def kill(self) -> None:
        """End it and everything that it started, also what a launcher put into a session of its own."""
        with suppress(psutil.NoSuchProcess):
            own = psutil.Process(self.process.pid)
            for process in (*own.children(recursive=True), own):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        self.process.wait()

    def _show(self, result: dict[str, Any]) -> None:
        print(f"\n== {self.name}: {time.monotonic() - self.began:.0f} s", flush=True)
        if "skipped" in result:
            print(f"skipped: {result['skipped']}", flush=True)
        elif result:
            try:
                print("\n".join(TABLES[f"gpu_{self.name}"](result)), flush=True)
            except (KeyError, ValueError) as error:
                print(f"no table of what there is: {error!r}", flush=True)
        if "log" in result:
            print(f"FAILED: {result['error']}", *result["log"], sep="\n", flush=True)


def write_metadata(folder: Path) -> None:
    """Tell libraries the version of this checkout where it is not installed: reports name it."""
    with suppress(PackageNotFoundError):
        version("loraprune")
        return
    found = re.search(r'^version = "(.+)"', (HERE.parent / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert found
    told = folder / f"loraprune-{found[1]}.dist-info" / "METADATA"
    told.parent.mkdir()
    told.write_text(f"Metadata-Version: 2.1\nName: loraprune\nVersion: {found[1]}\n", encoding="utf-8")


def run_all(names: Sequence[str], options: argparse.Namespace) -> list[str]:
    """Run parts, and return the names of those that failed."""
    timed = [name for name in names if PARTS[name].timed]
    others = [name for name in names if name not in timed]
    failed, running = [], {}
    options.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        write_metadata(Path(folder))
        turns = [*([name] for name in timed), *([others] if others else [])]
        try:
            for place, turn in enumerate(turns):
                ahead = turns[place + 1 : place + 2]
                for name in (each for group in (turn, *ahead) for each in group):
                    if name not in running:
                        running[name] = Running(name, options, Path(folder))
                for name in turn:
                    running[name].go()
                failed += [name for name in turn if not running[name].end()]
        finally:
            for each in running.values():
                if each.process.poll() is None:
                    each.kill()
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--texts", type=Path, default=HERE.parents[1] / "shared" / "data" / "text")
    parser.add_argument("--output", type=Path, default=HERE / "results")
    parser.add_argument("--be", choices=list(PARTS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.be:
        carry_out(options.be, options)
        return
    if options.tiny and options.output == HERE / "results":
        parser.error("--tiny: give an --output of its own, so that no measurement is replaced")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that no part outlives this
    began = time.monotonic()
    failed = run_all(list(dict.fromkeys(options.parts)), options)
    print(f"\n{time.monotonic() - began:.0f} s in all; failed: {', '.join(failed) or 'none'}")
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
