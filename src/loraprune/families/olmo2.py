"""OLMo 2: Llama's projections, with an RMS norm over all query channels and one over all key channels."""

from __future__ import annotations

from collections.abc import Iterator

from loraprune.families.base import Config, attention, gated_mlp, register_family
from loraprune.groups import Group


@register_family("olmo2")
def olmo2(config: Config) -> Iterator[Group]:
    """Yield the attention and the FFN group of every layer."""
    for index in range(config.num_hidden_layers):
        layer = f"model.layers.{index}"
        path = f"{layer}.self_attn"
        # Outputs are normed before they are added to the residual stream.
        yield attention(path, config, norms=(f"{path}.q_norm", f"{path}.k_norm"), residual=False)
        yield gated_mlp(f"{layer}.mlp", config, residual=False)
