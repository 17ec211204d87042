"""What the parts share: what they are asked for, random models made on the device, and a clock that waits for it."""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from loraprune.groups import Group
from loraprune.models.adapters import linear_paths

SHAPES: dict[str, dict[str, int]] = {
    "7B": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
           "num_key_value_heads": 32, "vocab_size": 32000},
    "1.1B": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32,
             "num_key_value_heads": 4, "vocab_size": 32000},
    "tiny": {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 8,
             "num_key_value_heads": 4, "vocab_size": 256},
}  # fmt: skip


@dataclass(frozen=True)
class Chosen:
    """What a part is asked for."""

    device: torch.device
    tiny: bool
    texts: Path
    """folder of real texts"""


def config_of(shape: str, **changes: int) -> LlamaConfig:
    """Return the configuration of a shape in bfloat16."""
    config = LlamaConfig(**SHAPES[shape] | changes, max_position_embeddings=4096, dtype=torch.bfloat16)
    config.architectures = ["LlamaForCausalLM"]
    return config


def build(config: LlamaConfig, device: torch.device) -> LlamaForCausalLM:
    """Return a random model in bfloat16, made on the device."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with device:
            return LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(torch.float32)


def quantise_(model: LlamaForCausalLM, groups: Sequence[Group], kind: str) -> None:
    """Hold the projections of all groups in 8 or 4 bits as `--quantize` does, one after the other and on the model's device."""
    import bitsandbytes

    for path in linear_paths(groups):
        weight = model.get_submodule(path).weight.data
        out, in_ = weight.shape
        if kind == "8bit":  # the threshold is that of transformers' BitsAndBytesConfig
            layer: Any = bitsandbytes.nn.Linear8bitLt(
                in_, out, bias=False, has_fp16_weights=False, threshold=6.0, device="meta"
            )
            codes, scales, _ = bitsandbytes.functional.int8_vectorwise_quant(weight.half())
            layer.weight = bitsandbytes.nn.Int8Params(
                codes, requires_grad=False, has_fp16_weights=False, CB=codes, SCB=scales
            )
        else:
            layer = bitsandbytes.nn.Linear4bit(
                in_, out, bias=False, compute_dtype=torch.bfloat16, compress_statistics=True, quant_type="nf4", device="meta"
            )  # fmt: skip
            layer.weight = bitsandbytes.nn.Params4bit(
                weight, requires_grad=False, compress_statistics=True, quant_type="nf4", module=layer
            ).to(weight.device)  # which is when it is quantised
        model.set_submodule(path, layer)
    setattr(model, f"is_loaded_in_{kind}", True)  # by which PEFT knows such layers


def synchronised(device: torch.device) -> float:
    """Return the time when the device has done all work."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def let_go(device: torch.device) -> int:
    """Give memory back of which nothing is known any more; return the bytes that are still held on a GPU."""
    gc.collect()
    if device.type != "cuda":
        return 0
    torch.cuda.empty_cache()
    return torch.cuda.memory_allocated(device)
