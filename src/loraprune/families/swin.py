"""Swin: a vision transformer whose stages double in width, with position biases for every head of every block.

The head size is the width over the head count, so no stock configuration holds fewer heads. All stages have the same
`mlp_ratio`, which is a fraction: FFNs of equal ratio fit a stock checkpoint. Source: transformers' modeling_swin.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

from loraprune.families.base import Config, register_family
from loraprune.families.vit import ffn, heads
from loraprune.groups import Group


@register_family("swin")
def swin(config: Config) -> Iterator[Group]:
    """Yield the attention and the FFN group of every block."""
    for stage, (depth, units) in enumerate(zip(config.depths, config.num_heads, strict=True)):
        width = config.embed_dim * 2**stage
        for index in range(depth):
            block = f"swin.encoder.layers.{stage}.blocks.{index}"
            path = f"{block}.attention"
            table = f"{path}.relative_position_bias"
            yield heads([path], units, width // units, table=table)
            yield ffn(f"{block}.mlp", int(config.mlp_ratio * width), sizes={"mlp_ratio": Fraction(1, width)})
