"""A good command line to spoil, and what a refusal must look like."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from loraprune import cli

COMMANDS = (
    "inspect",
    "plan",
    "prune",
    "finetune",
    "resume",
    "evaluate",
    "benchmark",
    "report",
    "export",
    "push",
    "compare",
    "compare-models",
    "demo",
)
KEPT = {"model.layers.0.self_attn": (1,), "model.layers.1.self_attn": (0, 1),
        "model.layers.0.mlp": tuple(range(0, 48, 2)), "model.layers.1.mlp": tuple(range(40))}  # fmt: skip
"""what layers of the layer-wise folder keep of the good model"""
SHORT = ["--steps", "2", "--batch", "2", "--length", "32", "--device", "cpu", "--html", "false"]
CALIBRATION = ["--calibration", "512"]
"""of prune: recovery of a few steps, where the default takes a pass over all of the text three times"""


@dataclass(frozen=True)
class Case:
    """A folder that holds a good model, a good text, and nothing else."""

    root: Path

    @property
    def model(self) -> Path:
        return self.root / "model"

    @property
    def text(self) -> Path:
        return self.root / "text.txt"

    @property
    def output(self) -> Path:
        return self.root / "out"

    def arguments(self, command: str = "prune", **changes: str) -> list[str]:
        """Return a good command line with some options changed."""
        options = {"model": str(self.model), "data": str(self.text), "output": str(self.output)} | changes
        recovery = CALIBRATION if command == "prune" else []
        return [command, *(part for name, value in options.items() for part in (f"--{name}", value)), *SHORT, *recovery]


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120, check=False)


def refused(
    arguments: list[str], capfd: pytest.CaptureFixture[str], *words: str, root: Path | None = None, lines: int = 1
) -> str:
    """Run a wrong command line: exit code 2, a line for each problem, every one of `words`, and nothing new on the disk."""
    before = sorted(root.iterdir()) if root else []
    capfd.readouterr()
    code = cli.main(arguments)
    out, err = capfd.readouterr()
    assert code == 2, err
    assert out == ""
    assert all(line.startswith("loraprune: error: ") for line in err.splitlines()), err
    assert err.count("\n") == lines, err
    assert err.endswith("\n")
    assert "Traceback" not in err
    for word in words:
        assert word in err
    if root:
        assert sorted(root.iterdir()) == before
    return err


def run(capfd: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """Run a command line that works and return its JSON."""
    capfd.readouterr()
    code = cli.main([*arguments, "--json"])
    out, err = capfd.readouterr()
    assert code == 0, err
    values: dict[str, Any] = json.loads(out)
    return values
