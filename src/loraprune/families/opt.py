"""OPT: Llama's separate projections, an FFN of two projections that belong to the layer itself.

Its configuration has no size of a head, so no stock checkpoint holds fewer of them.
"""

from __future__ import annotations

from collections.abc import Iterator

from loraprune.families.base import Config, attention, mlp, register_family
from loraprune.groups import Group


@register_family("opt")
def opt(config: Config) -> Iterator[Group]:
    """Yield the attention and the FFN group of every layer."""
    residual = bool(config.do_layer_norm_before)  # else the residual stream itself is normed after each addition
    for index in range(config.num_hidden_layers):
        layer = f"model.decoder.layers.{index}"
        path, units = f"{layer}.self_attn", config.num_attention_heads
        # The forward pass views q, k and v by it, see transformers' modeling_opt.py.
        attributes = {f"{path}.num_heads": 1}
        yield attention(
            path, config, out="out_proj", key_value_heads=units, attributes=attributes, residual=residual, stock=False
        )
        yield mlp(layer, config.ffn_dim, up="fc1", down="fc2", key="ffn_dim", residual=residual)
