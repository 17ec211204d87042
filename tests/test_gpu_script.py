"""`benchmarks/gpu.py` on a CPU, small: parts that can run do, one that cannot says why, and one that fails takes no other along."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu.py"


def read(folder: Path, part: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / f"gpu_{part}.json").read_text(encoding="utf-8"))
    return values


@pytest.mark.slow
def test_parts_write_what_they_found_and_a_failed_one_stands_alone(tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    for name in ("wikitext-2/train.txt", "wikitext-2/valid.txt", "tinystories/lowercase.txt", "c4/train.jsonl"):
        (texts / name).parent.mkdir(parents=True, exist_ok=True)
        (texts / name).write_text("no JSON", encoding="utf-8")
    command = [sys.executable, "-W", "ignore", SCRIPT, "--tiny", "--output", tmp_path / "out", "--texts", texts]
    done = subprocess.run(
        [*command, "--parts", "pretrained", "speed"], capture_output=True, text=True, check=False, timeout=280
    )
    assert done.returncode == 1
    assert "failed: pretrained" in done.stdout
    failed, speed = read(tmp_path / "out", "pretrained"), read(tmp_path / "out", "speed")
    assert failed["error"].startswith("JSONDecodeError")
    assert "JSONDecodeError" in failed["log"][-1]
    assert not failed["complete"]
    assert speed["complete"]
    assert {row["model"] for row in speed["decode"]} == {"dense", "ratio 0.2", "ratio 0.5"}
    assert speed["machine"]["versions"]["torch"]


def test_a_tiny_run_replaces_no_measurement() -> None:
    done = subprocess.run([sys.executable, SCRIPT, "--tiny"], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert "give an --output of its own" in done.stderr
