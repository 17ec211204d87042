"""The launchers themselves: what they start works together, and ends together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.pipeline.cases import read_report

SRC = Path(__file__).resolve().parents[3] / "src"
LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
    "accelerate": [
        "accelerate.commands.launch", "--use_fsdp", "--fsdp_version", "2", "--num_processes", "2", "--main_process_port", "0",
    ],
}  # fmt: skip


def launched(launcher: str, given: Path, output: Path, *more: str) -> subprocess.Popen[str]:
    """Start a prune run in two processes."""
    command = [
        sys.executable, "-W", "ignore", "-m", *LAUNCHERS[launcher], "-m", "loraprune", "prune", "--model", str(given / "model"),
        "--data", str(given / "text.txt"), "--output", str(output), "--batch", "2", "--length", "32", "--rank", "4",
        "--device", "cpu", "--html", "false", *more,
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(SRC), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_launcher_prunes(launcher: str, given: Path, tmp_path: Path) -> None:
    started = launched(launcher, given, tmp_path / "out", "--steps", "4", "--json")
    stdout, stderr = started.communicate(timeout=280)
    assert started.returncode == 0, stderr
    assert stdout.count('"ratio_reached"') == 1
    assert read_report(tmp_path / "out")["processes"] == 2


@pytest.mark.slow
def test_the_launcher_ends_the_others_when_one_is_killed(given: Path, tmp_path: Path) -> None:
    started = launched("torchrun", given, tmp_path / "out", "--steps", "100000", "--save", "2")
    try:
        deadline = time.monotonic() + 120
        while not list((tmp_path / "out.partial").glob("step-*")):
            assert time.monotonic() < deadline
            assert started.poll() is None, started.communicate()[1]
            time.sleep(0.2)
        ranks = [child for child in psutil.Process(started.pid).children(recursive=True) if "prune" in child.cmdline()]
        ranks[-1].send_signal(signal.SIGKILL)
        began = time.monotonic()
        _, stderr = started.communicate(timeout=120)
        assert time.monotonic() - began < 90
    finally:
        started.kill()
    assert started.returncode not in (0, None)
    assert not any(rank.is_running() and rank.status() != psutil.STATUS_ZOMBIE for rank in ranks)
    assert "process 0 of 2 failed" in stderr or "is kept" in stderr
    assert not (tmp_path / "out").exists()
