"""BART and the encoder-decoders built like it: separate projections with biases, an FFN of two projections.

Their head size is the hidden size over the head count, so no stock configuration holds fewer heads: these groups have no
`sizes`. The two stacks have separate head counts and FFN widths.
"""

from __future__ import annotations

from collections.abc import Iterator

from loraprune.families.base import Config, register_family
from loraprune.groups import Group, Span, Stream


def stacks(config: Config, *, residual: bool) -> Iterator[Group]:
    """Yield the attention groups and the FFN group of every layer of both stacks; `residual` is Group's."""
    for stack in ("encoder", "decoder"):
        stream: Stream = "decoder" if stack == "decoder" else "input"
        units, channels = getattr(config, f"{stack}_attention_heads"), getattr(config, f"{stack}_ffn_dim")
        head = config.d_model // units
        for index in range(getattr(config, f"{stack}_layers")):
            layer = f"model.{stack}.layers.{index}"
            for name in ("self_attn", "encoder_attn") if stack == "decoder" else ("self_attn",):
                path = f"{layer}.{name}"
                outputs = tuple(Span(f"{path}.{each}_proj", "out", head) for each in "qkv")
                spans = (*outputs, Span(f"{path}.out_proj", "in", head))
                yield Group(path, "attention", units, spans, residual=residual, stream=stream)
            inner = (Span(f"{layer}.fc1", "out", 1), Span(f"{layer}.fc2", "in", 1))
            sizes = {f"{stack}_ffn_dim": 1}
            yield Group(f"{layer}.fc1", "ffn", channels, inner, sizes, residual=residual, stream=stream)


@register_family("bart", "marian")
def post_normed(config: Config) -> Iterator[Group]:
    """Yield the groups of a model that norms the residual stream after every addition."""
    yield from stacks(config, residual=False)


@register_family("mbart", "pegasus", "m2m_100")
def pre_normed(config: Config) -> Iterator[Group]:
    """Yield the groups of a model that norms what its layers read."""
    yield from stacks(config, residual=True)
