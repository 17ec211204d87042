"""What the tests of the main job share: a short run, and how a stranger reads what it leaves."""

from __future__ import annotations

import functools
import json
import struct
from pathlib import Path
from typing import Any

from loraprune.config.training import PruneConfig
from tests.pipeline.stranger import load_and_generate
from tests.published import by_the_paper

SHORT: dict[str, Any] = {"steps": 10, "batch": 4, "length": 32, "lr": 1e-3, "rank": 4, "device": "cpu",
                         "html": False}  # fmt: skip
FILES = ["README.md", "config.json", "generation_config.json", "model.safetensors", "report.json", "run.yaml",
         "tokenizer.json", "tokenizer_config.json"]  # fmt: skip
STEP = 8
"""--round: the FFN width of every layer is a multiple of it"""


def prune_config(inputs: Path, output: Path, **changes: Any) -> PruneConfig:
    paths = {"model": str(inputs / "model"), "data": str(inputs / "text.txt"), "output": str(output)}
    return PruneConfig(**(paths | by_the_paper(**(SHORT | {"ratio": 0.5} | changes))))


def read_report(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return values


def shapes(folder: Path) -> dict[str, list[int]]:
    """Read tensor shapes from the bytes of a safetensors file alone: eight bytes of length, then JSON."""
    data = (folder / "model.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    return {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}


def count(folder: Path, *, prunable: bool = False) -> int:
    """Count the numbers in a weight file; `prunable` only those in projections of attention and FFN."""
    sizes = {name: functools.reduce(lambda a, b: a * b, shape, 1) for name, shape in shapes(folder).items()}
    return sum(size for name, size in sizes.items() if not prunable or "_proj." in name)


def check_loads_anywhere(folder: Path) -> dict[str, Any]:
    """Check that plain transformers loads a folder and generates with it; return what came out.

    That this package takes no part in it is shown once, by a process without it: test_folder.py.
    """
    found = load_and_generate(folder)
    assert found["class"].startswith("transformers.models.")
    assert found["cached"] == found["plain"]
    assert len(found["cached"]) >= 12
    assert found["parameters"] == read_report(folder)["parameters"]["pruned"]
    return found


def one_step(folder: Path, dense: Path) -> float:
    """Return the ratio that one rounding step of the FFN in every layer stands for."""
    widths = {name: shape for name, shape in shapes(dense).items() if "mlp" in name}
    each = sum(STEP * min(shape) for shape in widths.values())
    return each / count(dense, prunable=True)
