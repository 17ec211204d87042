"""How many bytes a weight takes in memory, scales of quantised weights included.

Knows nothing about models.
"""

from __future__ import annotations

import torch

from loraprune.config.base import Quantize

BLOCK = 64
"""weights that share a scale in 4 bits (bitsandbytes, nf4)"""


def dtype_of(name: str) -> torch.dtype:
    """Return the dtype of an option's name; `auto` stands for float32, which TF32 is stored as."""
    dtype = getattr(torch, "float32" if name in ("auto", "tf32") else name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def bytes_per_weight(quantize: Quantize, dtype: torch.dtype, *, columns: int) -> float:
    """Return the bytes that a weight of a linear layer with so many inputs takes.

    `8bit` is LLM.int8 of bitsandbytes, a float32 scale for every row; `4bit` its nf4, whose scales are float32 from the first cut on
    (before it they are quantised too, which takes less); `int8` torchao's weight-only format, whose scale for every row has the
    `dtype` that is computed in.
    Source: Dettmers et al., LLM.int8() (arXiv 2208.07339); QLoRA (arXiv 2305.14314).
    """
    if quantize == "8bit":
        return 1 + 4 / columns
    if quantize == "4bit":
        return 1 / 2 + 4 / BLOCK
    return 1 + dtype.itemsize / columns if quantize == "int8" else dtype.itemsize
