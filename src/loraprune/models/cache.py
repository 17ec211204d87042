"""The key-value cache of a model: its name, and how many numbers each layer keeps."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from loraprune.models.modes import evaluation_mode, padding_unchecked


def cache_name(model: PreTrainedModel) -> str:
    """Return what a model calls its cache; the former name is deprecated from transformers 5.24 on."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def cached_numbers(model: PreTrainedModel, tokens: int) -> list[int] | None:
    """Return how many keys and values each layer of a model keeps of one sequence of `tokens` tokens; it may be on the meta device.

    Layers with a sliding window keep no more than that. A model that does not generate keeps nothing: the list is empty. None for an
    encoder-decoder, which has caches of two kinds.
    """
    if not model.can_generate():
        return []
    if model.config.is_encoder_decoder:
        return None
    cache: Any = DynamicCache(config=model.config)
    with model.device, evaluation_mode(model), padding_unchecked(model):
        model(input_ids=torch.zeros(1, tokens, dtype=torch.long), use_cache=True, **{cache_name(model): cache})
    return [each.keys.numel() + each.values.numel() for each in cache.layers if each.keys is not None]
