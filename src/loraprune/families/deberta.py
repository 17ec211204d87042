"""DeBERTa v2 and v3: BERT's layout, with separate or shared projections for content and positions.

Source: transformers' modeling_deberta_v2.py; heads are counted by `num_attention_heads` there.
"""

from __future__ import annotations

from collections.abc import Iterator

from loraprune.families.base import Config, register_family
from loraprune.families.bert import bert_mlp
from loraprune.groups import Group, Span

POSITIONS = {"c2p": "pos_key_proj", "p2c": "pos_query_proj"}
"""kind of attention between contents and positions -> the projection of positions that it has, unless contents' is shared"""


@register_family("deberta-v2")
def deberta(config: Config) -> Iterator[Group]:
    """Yield the attention and the FFN group of every layer."""
    units = config.num_attention_heads
    size = config.hidden_size // units
    names = ["query_proj", "key_proj", "value_proj"]
    if getattr(config, "relative_attention", False) and not getattr(config, "share_att_key", False):
        names += [name for kind, name in POSITIONS.items() if kind in (config.pos_att_type or ())]
    for index in range(config.num_hidden_layers):
        layer = f"deberta.encoder.layer.{index}"
        path = f"{layer}.attention"
        spans = (
            *(Span(f"{path}.self.{name}", "out", size) for name in names),
            Span(f"{path}.output.dense", "in", size),
        )
        yield Group(path, "attention", units, spans, attributes={f"{path}.self.num_attention_heads": 1}, residual=False)
        yield bert_mlp(layer, config.intermediate_size)
