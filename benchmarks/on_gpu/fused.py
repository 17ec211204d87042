"""The fused kernel: precision and bandwidth against a copy of the device, as `benchmarks/kernel.py` measures them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import kernel

from on_gpu.shapes import Chosen


def run(chosen: Chosen) -> Iterator[dict[str, Any]]:
    """Yield all of it, or why there is nothing to measure."""
    if chosen.device.type == "cpu":
        yield {"skipped": "no CUDA device"}
        return
    result = kernel.run(chosen.device)
    yield result
    if not result["correct"]:
        raise SystemExit("the kernel differs from the float64 reference by more than its limits")
