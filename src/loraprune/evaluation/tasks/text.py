"""Functions that all text tasks share: a tokenizer that fits the model, rows that fit its positions, random tokens."""

from __future__ import annotations

import logging

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from loraprune.data import check_vocabulary
from loraprune.evaluation.tasks.base import Inputs, Request
from loraprune.families import positions
from loraprune.models.opening import load_tokenizer

PROBE_SEED = 0

logger = logging.getLogger(__name__)


def fitting_tokenizer(request: Request) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model.

    Raises:
        ConfigError: if it has tokens that the model does not embed.
    """
    tokenizer = load_tokenizer(request.model, trust_remote_code=request.trust_remote_code)
    check_vocabulary(tokenizer, request.config.get_text_config().vocab_size)
    return tokenizer


def fit_length(request: Request) -> int:
    """Return the tokens of a row: as requested, capped at the model's positions."""
    most = positions(request.config) or request.length
    if most < request.length:
        logger.info(
            "--length %d: the model has %d positions, so rows have at most %d tokens", request.length, most, most
        )
    return min(request.length, most)


def random_tokens(config: PreTrainedConfig, rows: int, tokens: int) -> Int[Tensor, "rows tokens"]:
    """Return token ids drawn evenly from the vocabulary, as many a row as the model has positions for."""
    generator = torch.Generator().manual_seed(PROBE_SEED)
    length = min(tokens, positions(config) or tokens)
    return torch.randint(config.get_text_config().vocab_size, (rows, length), generator=generator)


def padded_tokens(config: PreTrainedConfig, rows: int, tokens: int) -> Inputs:
    """Return random token ids with padding at the end of every row but the first."""
    ids = random_tokens(config, rows, tokens)
    mask = torch.ones_like(ids)
    mask[1:, ids.shape[1] * 2 // 3 :] = 0
    return {"input_ids": torch.where(mask.bool(), ids, config.pad_token_id or 0), "attention_mask": mask}
