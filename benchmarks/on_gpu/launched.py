"""`loraprune prune` under a launcher with one process on the one GPU, which is what nccl can be tried with there.

DDP as torchrun starts it. FSDP2 in a single process is refused by the command, as it shards nothing; here `one_shard.py` lifts that
check, so that scoring, cutting and saving sharded parameters run on the device once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from on_gpu.shapes import Chosen

ROOT = Path(__file__).resolve().parents[2]
PATHS = os.pathsep.join(filter(None, (str(ROOT / "src"), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH"))))
FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}
"""what `accelerate launch --use_fsdp --fsdp_version 2` says"""
ENVIRONMENT = {
    "PYTHONPATH": PATHS, "OMP_NUM_THREADS": "2",
    "NCCL_DEBUG": "VERSION",  # by which a run shows that it used nccl
    "GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo",  # the machine may not know its own name
}  # fmt: skip
LAUNCHES: dict[str, tuple[list[str], dict[str, str]]] = {
    "ddp": (["-m", "loraprune"], {}),
    "fsdp2": (["-m", "on_gpu.one_shard"], FSDP2),
}
"""name -> what torchrun starts, variables"""
SECONDS = 100
LINES = 15
"""of the end of a run that failed"""


def start(name: str, output: Path, chosen: Chosen) -> subprocess.Popen[str]:
    """Start a short prune run of the embedded model."""
    started, variables = LAUNCHES[name]
    command = [
        sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1",
        "--local-addr", "127.0.0.1", *started,
        "prune", "--model", "demo", "--data", "stdlib", "--output", str(output),
        "--eval", str(output.with_name("held_out.txt")), "--steps", "6", "--rows", "64",
        "--batch", "4", "--length", "128", "--rank", "4", "--html", "false", "--device", chosen.device.type, "--json",
    ]  # fmt: skip
    environment = os.environ | variables | ENVIRONMENT
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen[str], output: Path) -> dict[str, Any]:
    """Wait for a run and say how it ended."""
    try:
        text, _ = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        process.terminate()  # torchrun ends what it has started
        text, _ = process.communicate()
    print(text, flush=True)
    row: dict[str, Any] = {"exit_code": process.returncode, "nccl": "NCCL version" in text}
    if process.returncode:
        return row | {"end": text.splitlines()[-LINES:]}
    report = json.loads((output / "report.json").read_text(encoding="utf-8"))
    return row | {name: report[name] for name in ("processes", "ratio_reached", "verification")}


def run(chosen: Chosen) -> Iterator[dict[str, Any]]:
    """Yield how each launch ended; both run at once."""
    result: dict[str, Any] = {"definition": __doc__, "rows": {}}
    with tempfile.TemporaryDirectory() as folder:
        outputs = {name: Path(folder) / name for name in LAUNCHES}
        # How good it is does not matter here: the text to evaluate on is this file.
        (Path(folder) / "held_out.txt").write_text(Path(__file__).read_text(encoding="utf-8"), encoding="utf-8")
        processes = {name: start(name, output, chosen) for name, output in outputs.items()}
        for name, process in processes.items():
            result["rows"][name] = finish(process, outputs[name])
            yield result
    failed = [name for name, row in result["rows"].items() if row["exit_code"]]
    if failed:
        raise SystemExit(f"did not end well: {', '.join(failed)}")
