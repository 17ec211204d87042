"""Gemma 1 to 3 (text): Llama's projections; the additional norms act on the residual stream or on single heads."""

from __future__ import annotations

from collections.abc import Iterator

from loraprune.families.base import Config, attention, gated_mlp, register_family
from loraprune.families.llama import decoder
from loraprune.groups import Group

register_family("gemma", per_layer=())(decoder)


@register_family("gemma2", "gemma3_text")
def post_normed(config: Config) -> Iterator[Group]:
    """Yield the attention and the FFN group of every layer, whose outputs are normed before they are added."""
    for index in range(config.num_hidden_layers):
        layer = f"model.layers.{index}"
        yield attention(f"{layer}.self_attn", config, residual=False)
        yield gated_mlp(f"{layer}.mlp", config, residual=False)
