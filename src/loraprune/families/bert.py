"""BERT and the encoders built like it: projections with biases, an FFN without a gate, norms after each addition.

The size of a head is the hidden size over the head count in all of them, so that no stock checkpoint holds fewer heads: attention
groups have no `sizes`. What a layer gives is normed together with the residual stream, so no group adds to a plain sum.
"""

from __future__ import annotations

from collections.abc import Iterator

from loraprune.families.base import Config, mlp, register_family
from loraprune.groups import Group, Span


def heads(path: str, units: int, size: int, names: tuple[str, str, str, str]) -> Group:
    """Return the attention group of a layer; `names` are the projections of queries, keys and values, and the one that reads them."""
    *read, written = (f"{path}.{name}" for name in names)
    spans = (*(Span(module, "out", size) for module in read), Span(written, "in", size))
    return Group(path, "attention", units, spans, residual=False)


def bert_mlp(layer: str, channels: int) -> Group:
    """Return the FFN group of a layer that names its projections as BERT does."""
    return mlp(layer, channels, up="intermediate.dense", down="output.dense", key="intermediate_size", residual=False)


SEPARATE = ("self.query", "self.key", "self.value", "output.dense")


@register_family("bert", "roberta", "xlm-roberta", "electra")
def bert(config: Config) -> Iterator[Group]:
    """Yield the attention and the FFN group of every layer."""
    base = config.model_type.removeprefix("xlm-")
    size = config.hidden_size // config.num_attention_heads
    for index in range(config.num_hidden_layers):
        layer = f"{base}.encoder.layer.{index}"
        yield heads(f"{layer}.attention", config.num_attention_heads, size, SEPARATE)
        yield bert_mlp(layer, config.intermediate_size)


@register_family("albert")
def albert(config: Config) -> Iterator[Group]:
    """Yield the groups of the weights that there are: all layers of a group use the same, so a unit is one through all of them."""
    size = config.hidden_size // config.num_attention_heads
    for group in range(config.num_hidden_groups):
        for inner in range(config.inner_group_num):
            layer = f"albert.encoder.albert_layer_groups.{group}.albert_layers.{inner}"
            names = ("query", "key", "value", "dense")
            yield heads(f"{layer}.attention", config.num_attention_heads, size, names)
            yield mlp(
                layer, config.intermediate_size, up="ffn", down="ffn_output", key="intermediate_size", residual=False
            )


@register_family("distilbert")
def distilbert(config: Config) -> Iterator[Group]:
    """Yield the attention and the FFN group of every layer."""
    for index in range(config.n_layers):
        layer = f"distilbert.transformer.layer.{index}"
        names = ("q_lin", "k_lin", "v_lin", "out_lin")
        yield heads(f"{layer}.attention", config.n_heads, config.dim // config.n_heads, names)
        yield mlp(f"{layer}.ffn", config.hidden_dim, up="lin1", down="lin2", key="hidden_dim", residual=False)
