"""Count the multiply-accumulates of a model, and make the inputs of a text model.

Knows nothing about clocks.
"""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from loraprune.errors import ConfigError
from loraprune.models.modes import evaluation_mode, padding_unchecked


def count_macs(model: PreTrainedModel, *, length: int) -> int:
    """Return the multiply-accumulates of a forward pass over one sequence of `length` tokens, all its logits included.

    An encoder-decoder reads `length` tokens in each of its stacks.

    Matrix products only; attention counts the full square of positions. Works on the meta device too.

    Raises:
        ConfigError: the model's attention kernel hides its products from the counter.
    """
    kernel = getattr(model.config, "_attn_implementation", None)
    if kernel not in (None, "eager", "sdpa"):
        raise ConfigError(f"MACs of attention {kernel!r} cannot be counted: load with attn_implementation='sdpa'")
    tokens = torch.zeros(1, length, dtype=torch.long, device=model.device)
    # FlopCounterMode (torch 2.13) has no rule for the fused attention kernel of CPUs and counts it as nothing; the plain
    # kernel is made of matrix products, which it counts everywhere.
    plain, counter = sdpa_kernel([SDPBackend.MATH]), FlopCounterMode(display=False)
    with evaluation_mode(model), padding_unchecked(model), plain, counter:
        model(**text_inputs(model, tokens))
    return int(counter.get_total_flops()) // 2


def text_inputs(model: PreTrainedModel, tokens: Int[Tensor, "batch seq"]) -> dict[str, Int[Tensor, "batch seq"]]:
    """Return the inputs of a forward pass: tokens, and as many for the decoder of an encoder-decoder."""
    return {"input_ids": tokens} | ({"decoder_input_ids": tokens} if model.config.is_encoder_decoder else {})
