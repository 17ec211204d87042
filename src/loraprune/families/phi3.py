"""Phi-3: one fused q|k|v projection, one fused gate|up projection; the forward pass reads head counts."""

from __future__ import annotations

from collections.abc import Iterator

from loraprune.families.base import Config, head_size, register_family
from loraprune.groups import Group, Span


@register_family("phi3")
def phi3(config: Config) -> Iterator[Group]:
    """Yield the attention and the FFN group of every layer."""
    head, units = head_size(config), config.num_key_value_heads
    shared = config.num_attention_heads // units
    queries, keys = units * shared * head, units * head
    for index in range(config.num_hidden_layers):
        path = f"model.layers.{index}.self_attn"
        spans = (
            Span(f"{path}.qkv_proj", "out", shared * head, heads=shared),
            Span(f"{path}.qkv_proj", "out", head, queries),
            Span(f"{path}.qkv_proj", "out", head, queries + keys),
            Span(f"{path}.o_proj", "in", shared * head, heads=shared),
        )
        sizes = {"num_attention_heads": shared, "num_key_value_heads": 1}
        # The forward pass splits q|k|v by these two, see transformers' modeling_phi3.py.
        attributes = {f"{path}.config.num_attention_heads": shared, f"{path}.num_key_value_heads": 1}
        yield Group(path, "attention", units, spans, sizes, attributes)
        path = f"model.layers.{index}.mlp"
        channels = (
            Span(f"{path}.gate_up_proj", "out", 1),
            Span(f"{path}.gate_up_proj", "out", 1, config.intermediate_size),
            Span(f"{path}.down_proj", "in", 1),
        )
        yield Group(path, "ffn", config.intermediate_size, channels, {"intermediate_size": 1})
