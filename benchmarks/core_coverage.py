"""Line and branch coverage of the core by its tests, in one command; exit code 1 below the limit.

python -m benchmarks.core_coverage        writes benchmarks/results/core_coverage.json
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.helpers.common import write

ROOT = Path(__file__).resolve().parents[1]
CORE = (
    "groups", "plan", "models/saving", "pruning/allocation", "pruning/masking", "pruning/schedule", "pruning/surgery",
    "runtime/atomic", "runtime/interrupts", "runtime/workspace", "scoring/average", "training/resume",
)  # fmt: skip
"""modules and packages"""
MASKED = "families/test_contract.py::test_the_sliced_model_computes_what_the_masked_one_does"
TESTS = (
    "test_groups.py", "test_plan.py", "models/test_saving.py", "pruning/test_surgery.py", "pruning/test_schedule.py",
    "pruning/test_kinds.py", "pruning/allocation/test_uniform.py", "pruning/allocation/test_balanced.py",
    "pruning/allocation/test_layerwise.py", "scoring/test_average.py", "scoring/criteria/test_experts.py",
    "families/depth/test_choice.py", "families/test_channels.py",
    "families/test_contract.py::test_a_span_that_does_not_fit_is_refused",
    *(f"{MASKED}[uneven-plain-{variant}]" for variant in ("phi3", "mixtral", "convnext")),
    "runtime/test_folders.py", "runtime/test_interrupts.py", "training/resume/test_state.py", "pipeline/test_resume.py",
    "pipeline/test_resume_faults.py",
)  # fmt: skip
"""without whole runs, but for those that are resumed, and the properties of allocations, which take many minutes under coverage"""
LIMIT = 95.0


def measure(report: Path) -> dict[str, Any]:
    """Run the tests of the core under coverage; return its report."""
    command = [sys.executable, "-m", "pytest", "-q", *(f"tests/{name}" for name in TESTS), "--cov=loraprune", "--cov-branch",
               f"--cov-report=json:{report}"]  # fmt: skip
    subprocess.run(command, cwd=ROOT, check=True)
    values: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    return values


def of_core(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the summary of every file of the core, and of all of them together."""
    files: dict[str, dict[str, Any]] = {}
    for name, entry in sorted(report["files"].items()):
        module = Path(name).with_suffix("").as_posix().partition("loraprune/")[2]
        if any(module == part or module.startswith(f"{part}/") for part in CORE):
            counts = entry["summary"]
            files[module] = {
                "statements": counts["num_statements"], "missed": counts["missing_lines"], "branches": counts["num_branches"],
                "branches_missed": counts["missing_branches"], "percent": round(counts["percent_covered"], 2),
                "missing_lines": entry["missing_lines"],
            }  # fmt: skip
    total = {
        key: sum(one[key] for one in files.values()) for key in ("statements", "missed", "branches", "branches_missed")
    }
    all_of = total["statements"] + total["branches"]
    percent = 100 * (all_of - total["missed"] - total["branches_missed"]) / all_of
    return files | {"all": total | {"percent": round(percent, 2)}}


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        files = of_core(measure(Path(folder) / "coverage.json"))
    write("core_coverage", {"limit": LIMIT, "tests": TESTS, "files": files})
    low = [name for name, one in files.items() if one["percent"] < LIMIT]
    print({name: one["percent"] for name, one in files.items()})
    return int(bool(low))


if __name__ == "__main__":
    sys.exit(main())
