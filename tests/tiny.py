"""A tiny random model for every registered family and every variant that its code treats differently.

Weights are large enough, and norms and biases random, so that a wrong row or column shows in the logits.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel

from loraprune.families import find_groups
from loraprune.groups import Group
from loraprune.models.adapters import attach_lora
from loraprune.models.auto_classes import auto_class
from loraprune.plan import Plan
from tests.encoder_decoders import ENCODER_DECODERS
from tests.encoders import ENCODERS
from tests.variant import FFN, HEADS, HIDDEN, LANGUAGE, Variant, tokens
from tests.vision import VISION

KV_HEADS, HEAD = 4, 8

COMMON: dict[str, Any] = {**LANGUAGE, "num_key_value_heads": KV_HEADS}
SLIDING_LAYERS = ("sliding_attention", "full_attention")

NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
"""for families whose dropout is on by default: training with a mask and without draw other random numbers"""

SHARED = {"shared_expert_intermediate_size": 48}

VARIANTS: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": False},
    "llama-tied": {"tie_word_embeddings": True},
    "llama-mha": {"num_key_value_heads": HEADS},
    "llama-attention_bias": {"attention_bias": True, "mlp_bias": True},
    "mistral": {"head_dim": HEAD, "sliding_window": 16},
    "qwen2": {},
    "qwen3": {"head_dim": HEAD},
    "gemma": {"head_dim": HEAD},
    "gemma2": {"head_dim": HEAD, "sliding_window": 16, "query_pre_attn_scalar": HEAD},
    "gemma3_text": {"head_dim": HEAD, "sliding_window": 16, "query_pre_attn_scalar": HEAD},
    "phi3": {},
    # The norms over all queries and keys add an epsilon to a mean square, which weighs more in fewer channels: only where
    # it is negligible do mask and slice agree to float precision (with 1e-5 and one unit left they differ by 1.5e-4).
    "olmo2": {"initializer_range": 0.5, "rms_norm_eps": 1e-10},
    "smollm3": {"no_rope_layer_interval": 2},
    "gpt2": {"n_inner": FFN, **NO_DROPOUT},
    "gpt2-default_ffn": {"scale_attn_by_inverse_layer_idx": True, **NO_DROPOUT},
    "opt": {"ffn_dim": FFN, "word_embed_proj_dim": HIDDEN, "dropout": 0.0},
    "opt-post_normed": {"ffn_dim": FFN, "word_embed_proj_dim": 32, "dropout": 0.0, "do_layer_norm_before": False},
    "opt-no_bias": {"ffn_dim": FFN, "word_embed_proj_dim": HIDDEN, "dropout": 0.0, "enable_bias": False},
    "gpt_neox": {},
    "gpt_neox-serial": {"use_parallel_residual": False, "attention_bias": False},
    "gptj": {"n_inner": FFN, "rotary_dim": 4, "tie_word_embeddings": False, **NO_DROPOUT},
    "bloom": {},
    "falcon": {"ffn_hidden_size": FFN},
    "falcon-grouped": {"ffn_hidden_size": FFN, "new_decoder_architecture": True, "num_kv_heads": KV_HEADS},
    "falcon-interleaved": {"ffn_hidden_size": FFN, "multi_query": False, "bias": True, "parallel_attn": False},
    "falcon-alibi": {"ffn_hidden_size": FFN, "multi_query": False, "alibi": True},
    "phi": NO_DROPOUT,
    "phi-qk_layernorm": {"qk_layernorm": True, **NO_DROPOUT},
    "starcoder2": {},
    "cohere": {},
    "cohere-qk_norm": {"use_qk_norm": True},
    "mixtral": {"head_dim": HEAD, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        **SHARED,
        "mlp_only_layers": [0],
    },
    "qwen3_moe": {"head_dim": HEAD, "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "granite": {"residual_multiplier": 0.5, "attention_multiplier": 0.4},
}
"""variant of a causal language model -> what it sets; the model type stands before the first hyphen"""


def token_inputs() -> Mapping[str, Any]:
    """Return token ids for a decoder."""
    return {"input_ids": tokens(), "use_cache": False}


def token_batch() -> Mapping[str, Tensor]:
    """Return token ids that are their own labels."""
    ids = tokens(4, seed=3)
    return {"input_ids": ids, "labels": ids}


def causal(variant: str) -> Variant:
    """Return a variant that is a causal language model."""
    kind = variant.partition("-")[0]
    return Variant(kind, COMMON | VARIANTS[variant], "AutoModelForCausalLM", token_inputs, token_batch)


# Other kinds of models join by their own table, such as `tests.encoders.ENCODERS`.
KINDS = ENCODER_DECODERS | ENCODERS | VISION
EVERY: dict[str, Variant] = {variant: causal(variant) for variant in VARIANTS} | KINDS
"""all variants of all kinds of models; those above by the same names"""


def model_type(variant: str) -> str:
    """Return the model type of a variant."""
    return EVERY[variant].model_type


def tiny_config(variant: str, *, layers: int = 2) -> PreTrainedConfig:
    """Return the configuration of a variant."""
    chosen = EVERY[variant]
    kind = chosen.model_type
    values = chosen.at_depth(layers)
    if kind in ("gemma2", "gemma3_text"):
        values["layer_types"] = [SLIDING_LAYERS[i % 2] for i in range(layers)]
    config: PreTrainedConfig = CONFIG_MAPPING[kind](**values)
    return config


def tiny_model(variant: str, *, layers: int = 2, seed: int = 0) -> PreTrainedModel:
    """Return a random model of a variant in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: PreTrainedModel = auto_class(EVERY[variant].head).from_config(tiny_config(variant, layers=layers))
        model.config.architectures = [type(model).__name__]
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim == 1 or "bias_table" in name:
                    parameter += 0.2 * torch.randn_like(parameter)
            for name, buffer in model.named_buffers():
                if "running_mean" in name:
                    buffer += 0.2 * torch.randn_like(buffer)
                elif "running_var" in name:
                    buffer *= 0.5 + torch.rand_like(buffer)
    return model.eval()


def with_lora(
    model: PreTrainedModel, *, rank: int = 4, dropout: float = 0.0, seed: int = 0, kind: str = "lora"
) -> PeftModel:
    """Return the model with LoRA whose B is random instead of zero, so that the factors matter; DoRA's magnitudes are changed too."""
    groups = find_groups(model.config)
    adapted = attach_lora(model, groups, rank=rank, alpha=2.0 * rank, dropout=dropout, seed=seed, kind=kind)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
            elif "lora_magnitude_vector" in name:
                parameter *= 0.7 + 0.6 * torch.rand(parameter.shape, generator=generator)
    return adapted.eval()


@torch.no_grad()
def logits(model: torch.nn.Module, ids: Tensor) -> Tensor:
    """Return a model's logits."""
    result: Tensor = model.eval()(input_ids=ids, use_cache=False).logits
    return result


@torch.no_grad()
def output(model: torch.nn.Module, variant: str) -> Tensor:
    """Return what a model of a variant makes of the variant's inputs."""
    result: Tensor = getattr(model.eval()(**EVERY[variant].inputs()), EVERY[variant].output)
    return result


def relative(one: Tensor, other: Tensor) -> float:
    """Return the largest difference relative to the largest value."""
    return ((one - other).abs().max() / one.abs().max()).item()


def choose(groups: Sequence[Group], counts: Mapping[str, int], *, seed: int = 0) -> Plan:
    """Return a plan that keeps the given number of units, drawn at random."""
    draw = random.Random(seed)
    # Grouped products of experts need rows of 16 bytes.
    counts = {g.name: -(-counts[g.name] // 8) * 8 if g.kind == "expert_ffn" else counts[g.name] for g in groups}
    kept = {g.name: tuple(sorted(draw.sample(range(g.units), counts[g.name]))) for g in groups}
    return Plan({g.name: g.units for g in groups}, kept)


def uniform_plan(groups: Sequence[Group], heads: int, ffn: int, *, seed: int = 0) -> Plan:
    """Return a plan with `heads` attention units and `ffn` channels in every layer, or as many times more as it is wider.

    Of a convolutional network at most half of the channels are kept.
    """
    counts = {}
    for group in groups:
        narrowest = min(other.units for other in groups if other.kind == group.kind)
        wanted = heads if group.kind == "attention" else ffn
        most = {"channel": narrowest // 2, "expert_ffn": narrowest - 8}.get(group.kind, narrowest)
        counts[group.name] = max(group.least, min(wanted, most) * (group.units // narrowest))
    return choose(groups, counts, seed=seed)


def uneven_plan(groups: Sequence[Group], *, seed: int = 0) -> Plan:
    """Return a plan whose widths differ from layer to layer."""
    draw = random.Random(seed + 99)
    return choose(
        groups,
        {g.name: draw.randint(g.least, g.units - (9 if g.kind == "expert_ffn" else 1)) for g in groups},
        seed=seed,
    )
