"""Where to compute and in which precision.

Knows nothing about models.
"""

from __future__ import annotations

import torch

from loraprune.errors import ConfigError


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


def choose_dtype(name: str, device: torch.device) -> torch.dtype | None:
    """Return the dtype of an option; `auto` keeps the checkpoint's, but uses float32 on a CPU."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else None
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype
