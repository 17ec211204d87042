"""ModernBERT: one fused q|k|v projection, one fused input|gate projection, norms before each sub-layer.

The size of a head is the hidden size over the head count, so that no stock checkpoint holds fewer heads.
"""

from __future__ import annotations

from collections.abc import Iterator

from loraprune.families.base import Config, register_family
from loraprune.groups import Group, Span


@register_family("modernbert")
def modernbert(config: Config) -> Iterator[Group]:
    """Yield the attention and the FFN group of every layer."""
    size, width = config.hidden_size // config.num_attention_heads, config.intermediate_size
    for index in range(config.num_hidden_layers):
        path = f"model.layers.{index}.attn"
        parts = (Span(f"{path}.Wqkv", "out", size, part * config.hidden_size) for part in range(3))
        yield Group(path, "attention", config.num_attention_heads, (*parts, Span(f"{path}.Wo", "in", size)))
        path = f"model.layers.{index}.mlp"
        channels = (Span(f"{path}.Wi", "out", 1), Span(f"{path}.Wi", "out", 1, width), Span(f"{path}.Wo", "in", 1))
        yield Group(path, "ffn", width, channels, {"intermediate_size": 1})
