"""What every benchmark shares: where results go, on what machine they were taken, and models of a given shape."""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

RESULTS = Path(__file__).resolve().parents[1] / "results"
SHARED = Path(__file__).resolve().parents[3] / "shared"
SHAPE = {
    "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 64, "vocab_size": 4096,
}  # fmt: skip
"""a Llama of 26M parameters, over 90 % of them in its blocks"""


LIBRARIES = ("loraprune", "torch", "transformers", "peft", "accelerate", "triton", "bitsandbytes")


def versions() -> dict[str, str]:
    """Return the versions of the libraries that are installed, and Python's."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def machine() -> dict[str, Any]:
    """Return hardware and versions."""
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": psutil.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": versions(),
    }


def write(name: str, values: Mapping[str, Any], *, folder: Path = RESULTS) -> None:
    """Write a result beside the others and print where."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), **values}, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {path}")


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, least and most."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}
