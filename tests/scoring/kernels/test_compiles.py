"""The interpreter forgives what the compiler does not, so the kernel is also compiled, for GPUs that need not be here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton has no wheel for this platform")

LEAST_SHARED_MEMORY = 99 << 10
"""what a program may have on the smallest devices of compute capability 8 and above"""


@pytest.mark.slow
def test_every_form_compiles_and_fits_the_shared_memory(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("compile_for_gpus.py")],
        capture_output=True, text=True, check=False, timeout=280, env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    shared = {line.rpartition(" ")[0]: int(line.split()[-1]) for line in done.stdout.splitlines()}
    assert len(shared) == 6
    assert {variant: size for variant, size in shared.items() if size > LEAST_SHARED_MEMORY} == {}
