"""GPT-J: Llama's separate projections, rotary positions, an FFN of two projections beside the attention.

Its configuration has no size of a head, so no stock checkpoint holds fewer of them.
"""

from __future__ import annotations

from collections.abc import Iterator

from loraprune.families.base import Config, attention, mlp, register_family
from loraprune.groups import Group


@register_family("gptj")
def gptj(config: Config) -> Iterator[Group]:
    """Yield the attention and the FFN group of every layer."""
    for index in range(config.num_hidden_layers):
        layer = f"transformer.h.{index}"
        path, units = f"{layer}.attn", config.num_attention_heads
        # Older versions of the forward pass view q, k and v by it, see modeling_gptj.py of transformers 5.17.
        attributes = {f"{path}.num_attention_heads": 1}
        yield attention(path, config, out="out_proj", key_value_heads=units, attributes=attributes, stock=False)
        width = config.n_inner or 4 * config.hidden_size
        yield mlp(f"{layer}.mlp", width, up="fc_in", down="fc_out", key="n_inner")
