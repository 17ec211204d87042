"""Cohere's Command R: Llama's projections, the FFN beside the attention, norms of single heads with weights for each head."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from loraprune.families.base import Config, attention, gated_mlp, register_family
from loraprune.groups import Group, Span


@register_family("cohere")
def cohere(config: Config) -> Iterator[Group]:
    """Yield the attention and the FFN group of every layer."""
    shared = config.num_attention_heads // config.num_key_value_heads
    for index in range(config.num_hidden_layers):
        layer = f"model.layers.{index}"
        group = attention(f"{layer}.self_attn", config)
        if config.use_qk_norm:
            weights = (
                Span(f"{group.name}.q_norm", "scale", shared, heads=shared),
                Span(f"{group.name}.k_norm", "scale", 1),
            )
            group = replace(group, spans=(*group.spans, *weights))
        yield group
        yield gated_mlp(f"{layer}.mlp", config)
