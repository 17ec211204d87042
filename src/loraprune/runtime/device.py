"""Choose the device and the precision.

Knows nothing about models.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from loraprune.errors import ConfigError
from loraprune.runtime import launch

BFLOAT16 = ("avx512_bf16", "amx_bf16", "arm_bf16", "bf16")
"""torch's names of instruction sets with bfloat16 products, on x86 and ARM"""


def choose_device(name: str) -> torch.device:
    """Return the device of an option: `auto` takes CUDA, then MPS, then the CPU.

    Raises:
        ConfigError: if this machine has no such device.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, present in available.items() if present)
    if not available[name]:
        raise ConfigError(f"--device {name}: this machine has none; use --device cpu")
    return torch.device(name)


def choose_dtype(name: str, device: torch.device, stored: object) -> torch.dtype | None:
    """Return the dtype of an option, None for the checkpoint's, which is `stored`.

    `auto` keeps the checkpoint's; on a CPU only if that is bfloat16 and the CPU multiplies it natively, else it is float32.
    """
    if name == "auto":
        if device.type != "cpu":
            return None
        return torch.bfloat16 if stored == torch.bfloat16 and multiplies_bfloat16() else torch.float32
    dtype = getattr(torch, "float32" if name == "tf32" else name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def multiplies_bfloat16() -> bool:
    """Return whether this CPU has instructions for products of bfloat16 matrices: without them they take longer than in float32."""
    found = torch.cpu.get_capabilities()
    return any(found.get(name, False) for name in BFLOAT16)


def check_training(dtype: str, optimizer: str, device: torch.device) -> None:
    """Refuse a precision or an optimiser that a device cannot train with.

    Raises:
        ConfigError: for float16 without a GPU, and TF32 and paged optimisers without the right one.
    """
    if dtype == "float16" and device.type == "cpu":
        raise ConfigError(
            "--dtype float16: its gradients need a loss scale, which is for GPUs; use bfloat16 or float32 here"
        )
    if dtype == "tf32" and not (device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)):
        raise ConfigError("--dtype tf32: it needs a CUDA device of the Ampere generation or later; use --dtype float32")
    if optimizer.startswith("paged") and device.type != "cuda":
        raise ConfigError(
            f"--optimizer {optimizer}: it moves its state from a GPU to the CPU; use --optimizer adamw here"
        )


def check_compile(device: torch.device) -> None:
    """Refuse to compile a step where that is not supported.

    Raises:
        ConfigError: for several processes, and for a CPU without a C++ compiler.
    """
    if launch.count() > 1:
        raise ConfigError(f"--compile true: {launch.count()} processes wrap the model; launch one, or leave it out")
    if device.type == "cpu" and not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))):
        raise ConfigError(
            "--compile true: torch.compile needs a C++ compiler such as g++ on a CPU, and there is none; leave it out"
        )


@contextmanager
def tf32_products(wanted: bool) -> Iterator[None]:
    """Allow TF32 in products of float32 matrices within the block."""
    before = torch.get_float32_matmul_precision()
    if wanted:
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
