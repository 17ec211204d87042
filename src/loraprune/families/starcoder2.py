"""StarCoder 2: Llama's attention, an FFN of two projections."""

from __future__ import annotations

from collections.abc import Iterator

from loraprune.families.base import Config, attention, mlp, register_family
from loraprune.groups import Group


@register_family("starcoder2")
def starcoder2(config: Config) -> Iterator[Group]:
    """Yield the attention and the FFN group of every layer."""
    for index in range(config.num_hidden_layers):
        layer = f"model.layers.{index}"
        yield attention(f"{layer}.self_attn", config)
        yield mlp(f"{layer}.mlp", config.intermediate_size, up="c_fc", down="c_proj", key="intermediate_size")
