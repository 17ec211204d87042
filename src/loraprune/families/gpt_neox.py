"""GPT-NeoX and Pythia: one fused projection that holds q, k and v of one head after those of another.

Its configuration has no size of a head, so no stock checkpoint holds fewer of them.
"""

from __future__ import annotations

from collections.abc import Iterator

from loraprune.families.base import Config, fused_by_head, mlp, register_family
from loraprune.groups import Group


@register_family("gpt_neox")
def gpt_neox(config: Config) -> Iterator[Group]:
    """Yield the attention and the FFN group of every layer."""
    units = config.num_attention_heads
    head = config.hidden_size // units
    for index in range(config.num_hidden_layers):
        layer = f"gpt_neox.layers.{index}"
        yield fused_by_head(f"{layer}.attention", units, rows=3 * head, columns=head)
        width = config.intermediate_size
        yield mlp(f"{layer}.mlp", width, up="dense_h_to_4h", down="dense_4h_to_h", key="intermediate_size")
