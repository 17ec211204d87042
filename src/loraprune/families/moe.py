"""Mixtures of experts: Mixtral, Qwen 2 MoE, Qwen 3 MoE. Attention as in Llama; the experts of a layer are one stack of weights.

A channel of the experts is one unit through all experts of its layer, so that they keep equal widths; a whole expert goes with its
row of the router, and as many stay as a token is sent to. Stacks carry no LoRA: only criteria that need none can score them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from loraprune.families.base import Config, attention, gated_mlp, register_family, trunk
from loraprune.groups import Group, Span


def experts(path: str, config: Config, *, count: str, width: str) -> Iterator[Group]:
    """Yield the channels of the experts at `path` and the experts; `count` and `width` are their keys in the configuration."""
    stack, channels = f"{path}.experts", getattr(config, width)
    spans = (
        Span(stack, "expert_out", 1),
        Span(stack, "expert_out", 1, channels),
        Span(stack, "expert_in", 1),
    )
    yield Group(stack, "expert_ffn", channels, spans, {width: 1})
    rows = (Span(f"{path}.gate", "router", 1), Span(stack, "stack", 1))
    yield Group(f"{path}.gate", "expert", getattr(config, count), rows, {count: 1}, least=config.num_experts_per_tok)


@register_family("mixtral")
def mixtral(config: Config) -> Iterator[Group]:
    """Yield the attention, the experts' channels and the experts of every layer."""
    for index in range(config.num_hidden_layers):
        layer = f"model.layers.{index}"
        yield attention(f"{layer}.self_attn", config)
        yield from experts(f"{layer}.mlp", config, count="num_local_experts", width="intermediate_size")


@register_family("qwen2_moe", "qwen3_moe")
def qwen_moe(config: Config) -> Iterator[Group]:
    """Yield the groups of every layer: some have a plain FFN, and Qwen 2's others an expert that every token is sent to."""
    for index in range(config.num_hidden_layers):
        layer = f"{trunk(config)}.layers.{index}"
        yield attention(f"{layer}.self_attn", config)
        if index in config.mlp_only_layers or (index + 1) % config.decoder_sparse_step:
            yield gated_mlp(f"{layer}.mlp", config)
            continue
        yield from experts(f"{layer}.mlp", config, count="num_experts", width="moe_intermediate_size")
        if config.model_type.endswith("qwen2_moe"):
            # What it gives is scaled by a gate of its own before it is added.
            shared = gated_mlp(f"{layer}.mlp.shared_expert", config, residual=False)
            units = config.shared_expert_intermediate_size
            yield replace(shared, kind="shared_ffn", units=units, sizes={"shared_expert_intermediate_size": 1})
