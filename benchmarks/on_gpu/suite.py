"""The tests that bear on a GPU, run on it: the fused kernel, sparsity, quantised layers, and those that need one."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from on_gpu.shapes import Chosen

ROOT = Path(__file__).resolve().parents[2]
RUNS = {
    "gpu": ("gpu", ("tests/scoring/kernels", "tests/pruning/sparsity", "tests/evaluation/test_benchmark.py")),
    "others": ("not slow and not gpu", ("tests/scoring/kernels", "tests/models/quantised")),
}
"""name -> marks and files; apart, as accelerate decides once in a process whether it is on a GPU"""
NEEDED = ("pytest", "hypothesis", "beartype", "jaxtyping")
"""what tests/conftest.py imports"""
SECONDS = 100
LINES = 8
"""of a failure"""


def start(name: str, report: Path) -> subprocess.Popen[str]:
    """Start pytest; options of plugins that may not be here are no error."""
    marks, files = RUNS[name]
    quiet = ["-q", "--tb=short", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestConfigWarning"]
    return subprocess.Popen(
        [sys.executable, "-m", "pytest", *files, "-m", marks, *quiet, f"--junitxml={report}"], cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str], report: Path) -> dict[str, Any]:
    """Wait for pytest and read what it found."""
    try:
        text, _ = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        text, _ = process.communicate()
    print(text, flush=True)
    row: dict[str, Any] = {"exit_code": process.returncode}
    return row | (outcome(report) if report.exists() else {"end": text.splitlines()[-3 * LINES :]})


def outcome(report: Path) -> dict[str, Any]:
    """Read counts and the end of every failure from a JUnit file."""
    cases = list(ET.parse(report).getroot().iter("testcase"))
    bad = [(case, found) for case in cases for kind in ("failure", "error") if (found := case.find(kind)) is not None]
    skipped = [found.get("message", "") for case in cases if (found := case.find("skipped")) is not None]
    return {
        "passed": len(cases) - len({id(case) for case, _ in bad}) - len(skipped),
        "failed": [
            {"test": f"{case.get('classname')}::{case.get('name')}", "end": (found.text or "").splitlines()[-LINES:]}
            for case, found in bad
        ],
        "skipped": {reason: skipped.count(reason) for reason in sorted(set(skipped))},
    }


def run(chosen: Chosen) -> Iterator[dict[str, Any]]:
    """Yield the counts and failures, or what is missing."""
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        yield {"skipped": f"not installed: {', '.join(missing)}"}
        return
    result: dict[str, Any] = {"runs": RUNS, "rows": {}}
    with tempfile.TemporaryDirectory() as folder:
        reports = {name: Path(folder) / f"{name}.xml" for name in (["gpu"] if chosen.tiny else RUNS)}
        processes = {name: start(name, report) for name, report in reports.items()}
        for name, process in processes.items():
            result["rows"][name] = finish(process, reports[name])
            yield result
    if bad := [name for name, row in result["rows"].items() if row["exit_code"]]:
        raise SystemExit(f"pytest did not end well: {', '.join(bad)}")
