"""T5 and the models built like it: encoder and decoder with a position bias for every head, FFN plain or gated.

In T5 and mT5 block 0 makes the bias of a stack's self-attention and hands it to all other blocks, so a head is one unit
through the whole stack. Cross-attention has no bias: its heads belong to their block, but the zeros that block 0
makes instead of a bias would fit only its own head count. `fixed` makes them one head wide, which broadcasts to every count.
In UMT5 every block has its own bias. Source: transformers' modeling_t5.py, modeling_umt5.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from loraprune.errors import UnsupportedModelError
from loraprune.families.base import Config, register_family, transformers_version
from loraprune.groups import Group, Span, Stream


@register_family("t5", "mt5")
def t5(config: Config) -> Iterator[Group]:
    """Yield one self-attention group of each stack, and the cross-attention and FFN groups of every block."""
    zeros = "decoder.block.0.layer.1.EncDecAttention.n_heads"
    for stack, blocks in (("encoder", config.num_layers), ("decoder", config.num_decoder_layers)):
        paths = [f"{stack}.block.{index}.layer.0.SelfAttention" for index in range(blocks)]
        yield heads(f"{stack}.block", paths, config, stream=stream(stack), bias=f"{paths[0]}.relative_attention_bias")
        for index in range(blocks):
            block = f"{stack}.block.{index}.layer"
            if stack == "decoder":
                path = f"{block}.1.EncDecAttention"
                yield heads(path, [path], config, stream="decoder", fixed={zeros: 1})
            yield ffn(block, stack, config)


@register_family("umt5")
def umt5(config: Config) -> Iterator[Group]:
    """Yield the self-attention, the cross-attention and the FFN group of every block."""
    # Its attention does not say there that it is causal, which counts where no mask is made.
    if transformers_version() < (5, 18):
        raise UnsupportedModelError(
            "umt5: in transformers before 5.18 its decoder sees the tokens that it has to predict; pip install 'transformers>=5.18'"
        )
    for stack, blocks in (("encoder", config.num_layers), ("decoder", config.num_decoder_layers)):
        for index in range(blocks):
            block = f"{stack}.block.{index}.layer"
            path, cross = f"{block}.0.SelfAttention", f"{block}.1.EncDecAttention"
            # The forward pass views queries, keys and values by this number.
            own = {f"{path}.n_heads": 1}
            bias = f"{path}.relative_attention_bias"
            yield heads(path, [path], config, stream=stream(stack), bias=bias, attributes=own)
            if stack == "decoder":
                yield heads(cross, [cross], config, stream="decoder", attributes={f"{cross}.n_heads": 1})
            yield ffn(block, stack, config)


def stream(stack: str) -> Stream:
    """Return the residual stream of a stack."""
    return "decoder" if stack == "decoder" else "input"


def heads(
    name: str,
    paths: Sequence[str],
    config: Config,
    *,
    stream: Stream,
    bias: str | None = None,
    attributes: Mapping[str, int] | None = None,
    fixed: Mapping[str, int] | None = None,
) -> Group:
    """Return the group of heads that the attention modules at `paths` share; `bias` is their table of position biases."""
    spans = [
        Span(f"{path}.{projection}", "in" if projection == "o" else "out", config.d_kv)
        for path in paths
        for projection in ("q", "k", "v", "o")
    ]
    if bias:
        spans.append(Span(bias, "table", 1))
    # The configuration has one head count for both stacks and for cross-attention.
    return Group(
        name, "attention", config.num_heads, tuple(spans), {"num_heads": 1}, attributes or {}, fixed or {}, stream=stream
    )  # fmt: skip


def ffn(block: str, stack: str, config: Config) -> Group:
    """Return the FFN group of a block, whose FFN is its last sub-layer."""
    path = f"{block}.{2 if stack == 'decoder' else 1}.DenseReluDense"
    reading = ("wi_0", "wi_1") if config.is_gated_act else ("wi",)
    spans = (*(Span(f"{path}.{name}", "out", 1) for name in reading), Span(f"{path}.wo", "in", 1))
    return Group(path, "ffn", config.d_ff, spans, {"d_ff": 1}, stream=stream(stack))
