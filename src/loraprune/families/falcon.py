"""Falcon: one fused projection in three layouts.

The new decoder architecture (40B, 180B) holds the query heads of a key-value head and this one's key and value, group after
group: a unit is such a group. Multi-query attention (7B) has all query heads, then the one key and value that they share and
that stay: a unit is a query head. Else q, k and v of one head stand after those of another. With ALiBi (RW) a head's slope
follows from its number, so heads stay. The configuration has no size of a head: no stock checkpoint holds fewer of them.
"""

from __future__ import annotations

from collections.abc import Iterator

from loraprune.families.base import Config, fused_by_head, mlp, register_family
from loraprune.groups import Group


@register_family("falcon")
def falcon(config: Config) -> Iterator[Group]:
    """Yield the attention and the FFN group of every layer."""
    for index in range(config.num_hidden_layers):
        layer = f"transformer.h.{index}"
        if not config.alibi:
            yield heads(f"{layer}.self_attention", config)
        width = config.ffn_hidden_size
        yield mlp(f"{layer}.mlp", width, up="dense_h_to_4h", down="dense_4h_to_h", key="ffn_hidden_size")


def heads(path: str, config: Config) -> Group:
    """Return the attention group of a layer; the forward pass views everything by its attributes."""
    units = config.num_attention_heads
    head, count, groups = config.hidden_size // units, f"{path}.num_heads", f"{path}.num_kv_heads"
    if config.new_decoder_architecture:
        shared = units // config.num_kv_heads
        attributes = {count: shared, groups: 1}
        rows, columns = (shared + 2) * head, shared * head
        return fused_by_head(path, config.num_kv_heads, rows=rows, columns=columns, attributes=attributes)
    if config.multi_query:
        return fused_by_head(path, units, rows=head, columns=head, attributes={count: 1})
    return fused_by_head(path, units, rows=3 * head, columns=head, attributes={count: 1, groups: 1})
