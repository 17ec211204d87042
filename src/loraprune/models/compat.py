"""Names that differ between the supported versions of transformers: all of them are here."""

from __future__ import annotations

from typing import Any

import transformers
from torch import nn

from loraprune.models.adapters import base_model


def recompute_activations(model: nn.Module) -> None:
    """Let a model of transformers recompute activations in its backward pass."""
    base: Any = model
    enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def pillow_processor(name: str) -> Any:
    """Return the image processor class that needs Pillow alone, or None; `name` is the plain one, such as ViTImageProcessor.

    Before there were classes named for Pillow, the plain ones were Pillow's.
    """
    if hasattr(transformers, "ViTImageProcessorPil"):
        return getattr(transformers, f"{name}Pil", None)
    return getattr(transformers, name, None) if name.endswith("ImageProcessor") else None


def as_numbers() -> dict[str, Any]:
    """Return the option of `from_pretrained` by which a GGUF file's weights are read as plain numbers.

    Versions from 5.24 on keep them packed where there are kernels for that; before, there was no other way than numbers.
    """
    kind = getattr(transformers, "GgufConfig", None)
    return {"quantization_config": kind(dequantize=True)} if kind else {}


def enable_checkpointing(model: nn.Module) -> None:
    """Recompute activations in the backward pass."""
    recompute_activations(base_model(model))
