"""GPT-2: one fused q|k|v projection stored as (in, out), an FFN without a gate.

Its configuration has no size of a head, so no stock checkpoint holds fewer of them.
"""

from __future__ import annotations

from collections.abc import Iterator

from loraprune.families.base import Config, mlp, register_family
from loraprune.groups import Group, Span


@register_family("gpt2")
def gpt2(config: Config) -> Iterator[Group]:
    """Yield the attention and the FFN group of every layer."""
    units, hidden = config.num_attention_heads, config.hidden_size
    head = hidden // units
    for index in range(config.num_hidden_layers):
        layer = f"transformer.h.{index}"
        path = f"{layer}.attn"
        spans = (
            *(Span(f"{path}.c_attn", "out", head, part * hidden) for part in range(3)),
            Span(f"{path}.c_proj", "in", head),
        )
        # The forward pass splits q|k|v by split_size, see transformers' modeling_gpt2.py.
        attributes = {f"{path}.num_heads": 1, f"{path}.split_size": head}
        yield Group(path, "attention", units, spans, attributes=attributes)
        width = config.n_inner or 4 * hidden
        yield mlp(f"{layer}.mlp", width, up="c_fc", down="c_proj", key="n_inner")
