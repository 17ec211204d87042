"""What every part shares: a row of the table, a tiny model with a text, and the runs that are tormented."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, field
from pathlib import Path

from tests.samples import save_tiny, write_text

SHORT = [
    "--steps",
    "12",
    "--batch",
    "4",
    "--length",
    "32",
    "--lr",
    "1e-3",
    "--rank",
    "4",
    "--device",
    "cpu",
    "--html",
    "false",
    "--ratio",
    "0.5",
]
RUNS = {
    "shrinking": ["--save", "1"],
    "masked": ["--save", "2", "--shrink", "false"],
    "sparsity 2:4": ["--save", "2", "--sparsity", "2:4"],
    "compensate": ["--save", "2", "--compensate", "true"],
    "teacher cache": ["--save", "3", "--teacher", "cache"],
    "teacher copy, compensate, masked": [
        "--save",
        "2",
        "--teacher",
        "copy",
        "--compensate",
        "true",
        "--shrink",
        "false",
    ],
    "accumulate 3, 30 rows": ["--save", "1", "--accumulate", "3", "--rows", "30"],
    "gate, global": ["--save", "3", "--criterion", "gate", "--allocation", "global"],
}
"""name -> options of a prune run"""
RESULTS = ("model.safetensors", "plan.json")


@dataclass
class Row:
    """One line of the table."""

    part: str
    case: str
    tried: int = 0
    losses: list[str] = field(default_factory=list)
    """one sentence for everything that was lost"""


def inputs(root: Path) -> Path:
    """Return a new folder with a tiny random model and a text."""
    folder = root / "inputs"
    folder.mkdir()
    save_tiny(folder / "model")
    write_text(folder / "text.txt", 200)
    return folder


def command(given: Path, output: Path, options: list[str]) -> list[str]:
    """Return the command line of a prune run; a --sparsity run takes no --ratio."""
    short = SHORT[:-2] if "--sparsity" in options else SHORT
    return [
        "prune",
        "--model",
        str(given / "model"),
        "--data",
        str(given / "text.txt"),
        "--output",
        str(output),
        *short,
        *options,
    ]


def digests(output: Path) -> dict[str, str]:
    """Return the digests of what must be the same twice."""
    return {n: hashlib.sha256((output / n).read_bytes()).hexdigest() for n in RESULTS if (output / n).is_file()}


def damage(checkpoint: Path, draw: random.Random) -> str:
    """Cut, alter or remove a file of a checkpoint, and return what was done."""
    victim = draw.choice(sorted(checkpoint.iterdir()))
    data = bytearray(victim.read_bytes())
    how = draw.choice(("cut", "flip", "gone"))
    if how == "flip":
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    victim.write_bytes(data[: draw.randrange(len(data))] if how == "cut" else data)
    if how == "gone":
        victim.unlink()
    return f"{victim.name} {how}"


def tree(folder: Path) -> dict[str, str]:
    """Return the digests of all files below a folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
