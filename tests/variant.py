"""What a tiny model of any kind is: how it is made, what it is fed, and which of its tensors is compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

VOCABULARY = 128
HIDDEN, HEADS, FFN = 64, 8, 96

LANGUAGE: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "num_attention_heads": HEADS,
    "intermediate_size": FFN,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""what configurations of most models of texts call by the same names"""


@dataclass(frozen=True)
class Variant:
    """A tiny model of one family, with one head."""

    model_type: str
    values: Mapping[str, Any]
    """keys of its configuration"""
    head: str
    """Auto class"""
    inputs: Callable[[], Mapping[str, Any]]
    """fixed inputs for two rows"""
    batch: Callable[[], Mapping[str, Tensor]]
    """fixed inputs with `labels`, to train on"""
    output: str = "logits"
    """name of the tensor among the model's outputs"""
    depth: str = "num_hidden_layers"
    """key for the number of layers; dots lead into a nested configuration, a list has an entry for every stage"""

    def at_depth(self, layers: int) -> dict[str, Any]:
        """Return the keys of a model with so many layers."""
        owner, _, key = self.depth.rpartition(".")
        inner = self.values[owner] if owner else self.values
        stages = inner.get(key)
        deep = {**inner, key: [layers] * len(stages) if isinstance(stages, list) else layers}
        return {**self.values, owner: deep} if owner else deep


def tokens(rows: int = 2, length: int = 24, *, seed: int = 0) -> Tensor:
    """Return random token ids without special ones; longer than the sliding windows."""
    return torch.randint(3, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))
