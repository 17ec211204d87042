"""Llama and the decoders built like it: separate projections, grouped-query attention, gated FFN.

Biases (Qwen2) and norms over a single head (Qwen3) need nothing: the first are cut with their rows, the second stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from loraprune.families.base import Config, attention, gated_mlp, register_family, trunk
from loraprune.groups import Group

# Fields of a Llama configuration that a Mistral one lacks; the biases must be off.
LLAMA_ONLY = ("attention_bias", "mlp_bias", "pretraining_tp")


def llama_as_mistral(config: Config) -> Mapping[str, object] | None:
    """Return the same model as a Mistral: LlamaConfig refuses head counts that do not divide the hidden size.

    Source: transformers' configuration_llama.py and modeling_mistral.py: same names of weights, same computation without a sliding window.
    """
    if config.attention_bias or config.mlp_bias or trunk(config) != "model":
        return None
    values = {key: value for key, value in config.to_dict().items() if key not in LLAMA_ONLY}
    return values | {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": None}


def decoder(config: Config) -> Iterator[Group]:
    """Yield the attention and the FFN group of every layer."""
    for index in range(config.num_hidden_layers):
        layer = f"{trunk(config)}.layers.{index}"
        yield attention(f"{layer}.self_attn", config)
        yield gated_mlp(f"{layer}.mlp", config)


register_family("llama", stand_in=llama_as_mistral, per_layer=())(decoder)
register_family("mistral", "granite", per_layer=())(decoder)
register_family("qwen2", "qwen3", per_layer=("layer_types",))(decoder)
register_family("smollm3", per_layer=("layer_types", "no_rope_layers"))(decoder)
