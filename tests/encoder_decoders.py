"""Tiny encoder-decoders for `tests.tiny.EVERY`: two stacks of different depth, and what they are fed."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from packaging.version import Version
from torch import Tensor

from loraprune.data import PairCollator
from tests.variant import VOCABULARY, Variant, tokens

HEAD = "AutoModelForSeq2SeqLM"

T5: dict[str, Any] = {
    "d_model": 64,
    "d_kv": 8,
    "num_heads": 8,
    "d_ff": 96,
    "dropout_rate": 0.0,
    "num_decoder_layers": 2,
    "vocab_size": VOCABULARY,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16,
    "pad_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 0,
}
BART: dict[str, Any] = {
    "d_model": 64,
    "encoder_attention_heads": 8,
    "decoder_attention_heads": 8,
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96,
    "decoder_layers": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "init_std": 0.2,
    "dropout": 0.0,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}
GATED = {"feed_forward_proj": "gated-gelu"}


def pair_inputs() -> Mapping[str, Any]:
    """Return source and target tokens, the targets fewer."""
    return {"input_ids": tokens(), "decoder_input_ids": tokens(length=12, seed=1), "use_cache": False}


def pair_batch() -> Mapping[str, Tensor]:
    """Return pairs of uneven lengths, padded on both sides."""
    rows = [
        {"input_ids": source[: 24 - place].tolist(), "labels": target[: 9 + place].tolist()}
        for place, (source, target) in enumerate(zip(tokens(4, seed=3), tokens(4, 12, seed=4), strict=True))
    ]
    return PairCollator(0, 0)(rows)


def variant(kind: str, values: Mapping[str, Any]) -> Variant:
    """Return a variant whose encoder's depth is free; its decoder has two layers."""
    depth = "num_layers" if "d_kv" in values else "encoder_layers"
    return Variant(kind, values, HEAD, pair_inputs, pair_batch, depth=depth)


ENCODER_DECODERS: dict[str, Variant] = {
    "t5": variant("t5", T5),
    # T5 1.1: a gated FFN, and no scaling before the head.
    "t5-gated": variant("t5", T5 | GATED | {"tie_word_embeddings": False}),
    "mt5": variant("mt5", T5 | GATED),
    "bart": variant("bart", BART),
    "mbart": variant("mbart", BART),
    "pegasus": variant("pegasus", BART),
    "marian": variant("marian", BART),
    "m2m_100": variant("m2m_100", BART),
}
REFUSED = {"umt5"} if Version(version("transformers")) < Version("5.18") else set()
"""families that the installed transformers computes wrongly"""
if not REFUSED:
    ENCODER_DECODERS["umt5"] = variant("umt5", T5 | GATED)
