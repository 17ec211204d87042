"""The key-value cache of a model: how many numbers each layer keeps. Needs no weights."""

from __future__ import annotations

import torch
from transformers import DynamicCache, PreTrainedModel

from loraprune.models.modes import evaluation_mode


def cached_numbers(model: PreTrainedModel, tokens: int) -> list[int] | None:
    """Return how many keys and values each layer of a model on the meta device keeps of one sequence of `tokens` tokens.

    Layers with a sliding window keep their window. A model that does not generate keeps nothing: the list is empty. None for another
    cache than keys and values of every layer, such as an encoder-decoder's.
    """
    if not model.can_generate():
        return []
    if model.config.is_encoder_decoder:
        return None
    with torch.device("meta"), evaluation_mode(model):
        cache = model(input_ids=torch.zeros(1, tokens, dtype=torch.long), use_cache=True).past_key_values
    if not isinstance(cache, DynamicCache):
        return None
    return [keys.numel() + values.numel() for keys, values, *_ in cache]
