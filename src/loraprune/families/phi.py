"""Phi 1 and 2: Llama's separate projections, an FFN of two projections beside the attention."""

from __future__ import annotations

from collections.abc import Iterator

from loraprune.families.base import Config, attention, mlp, register_family
from loraprune.groups import Group


@register_family("phi")
def phi(config: Config) -> Iterator[Group]:
    """Yield the attention and the FFN group of every layer."""
    for index in range(config.num_hidden_layers):
        layer = f"model.layers.{index}"
        # The norms of single queries and keys are sized by hidden size over head count, whatever head_dim says.
        yield attention(f"{layer}.self_attn", config, out="dense", stock=not config.qk_layernorm)
        yield mlp(f"{layer}.mlp", config.intermediate_size, up="fc1", down="fc2", key="intermediate_size")
