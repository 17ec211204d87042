"""ConvNeXt: channels of every stage's residual stream, and the channels inside every layer.

Depthwise convolutions follow their channel. The norms over a stream count only the channels that are left: mean and variance
are taken over those, masked or sliced. A layer's inner width is four times its stream's in a stock checkpoint.
Source: transformers' modeling_convnext.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

from loraprune.families.base import Config, register_family
from loraprune.groups import Group, Span

EXPANSION = 4


@register_family("convnext")
def convnext(config: Config) -> Iterator[Group]:
    """Yield the stream of every stage, and the channels inside every layer."""
    last = len(config.depths) - 1
    for stage, (depth, width) in enumerate(zip(config.depths, config.hidden_sizes, strict=True)):
        path = f"convnext.encoder.stages.{stage}"
        if stage == 0:
            spans = [Span("convnext.embeddings.patch_embeddings", "out", 1)]
            spans += [Span("convnext.embeddings.layernorm", "layer_norm", 1)]
        else:
            spans = [Span(f"{path}.downsampling_layer.1", "out", 1)]
        for index in range(depth):
            layer = f"{path}.layers.{index}"
            spans += [
                Span(f"{layer}.dwconv", "table", 1),
                Span(f"{layer}.layernorm", "layer_norm", 1),
                Span(f"{layer}.pwconv1", "in", 1),
                Span(f"{layer}.pwconv2", "out", 1),
            ]
            spans += [Span(layer, "table", 1)] if config.layer_scale_init_value > 0 else []
            inner = (Span(f"{layer}.pwconv1", "out", 1), Span(f"{layer}.pwconv2", "in", 1))
            sizes = {f"hidden_sizes.{stage}": Fraction(1, EXPANSION)}
            yield Group(layer, "channel", EXPANSION * width, inner, sizes, residual=False)
        if stage < last:
            below = f"convnext.encoder.stages.{stage + 1}.downsampling_layer"
            spans += [Span(f"{below}.0", "layer_norm", 1), Span(f"{below}.1", "in", 1)]
        else:
            spans += [Span("convnext.layernorm", "layer_norm", 1), Span("classifier", "head", 1)]
        yield Group(path, "channel", width, tuple(spans), {f"hidden_sizes.{stage}": 1}, residual=False)
