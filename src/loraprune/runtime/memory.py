"""Measure the peak memory of a part of a run.

On CUDA the memory of tensors on the device; elsewhere the resident memory of the whole process, libraries included.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import psutil
import torch

from loraprune.runtime.allocator import return_freed_memory

CLEAR_REFS = Path("/proc/self/clear_refs")
STATUS = Path("/proc/self/status")


def reset_peak_memory(device: torch.device) -> None:
    """Start a new measurement; if the system cannot, the peak since the start of the process is reported."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    return_freed_memory()
    try:
        CLEAR_REFS.write_text("5")  # Linux: sets VmHWM back to the present size
    except OSError:
        return


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak since `reset_peak_memory`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if STATUS.exists():
        line = next((line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:")), None)
        if line:
            return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def available_memory_bytes() -> dict[str, int]:
    """Return the memory of this machine, and of its first GPU where there is one."""
    found = {"cpu": int(psutil.virtual_memory().total)}
    if torch.cuda.is_available():
        found["cuda"] = int(torch.cuda.get_device_properties(0).total_memory)
    return found


def free_memory_bytes(device: torch.device) -> int:
    """Return the memory that is free now on a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)
