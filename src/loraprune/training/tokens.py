"""Choose the tokens that a run keeps of its model's vocabulary."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import chain

from transformers import PreTrainedTokenizerBase

from loraprune.config.training import FinetuneConfig, PruneConfig
from loraprune.data import TextRows
from loraprune.evaluation.tasks import Prepared, Request
from loraprune.models.vocabulary import Choice, choose_tokens, reads_no_text


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens that a run keeps, and the data of which they were chosen."""

    choice: Choice
    request: Request
    """what `data` was made of"""
    data: Prepared
    """all rows, before --rows, in the tokens of the whole vocabulary"""


def choose_vocabulary(config: PruneConfig | FinetuneConfig, request: Request, data: Prepared) -> Tokens | None:
    """Return the tokens to keep: those of all training rows, or the most frequent of them; None where none are to be removed.

    Raises:
        ConfigError: for a model without text, a tokenizer that cannot be cut, and a number of tokens that it cannot have.
    """
    if not isinstance(config, PruneConfig) or config.vocabulary is None:
        return None
    rows, tokenizer = data.training, data.processor
    if not isinstance(rows, TextRows) or not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise reads_no_text(config.vocabulary)
    counts = Counter(chain.from_iterable(rows.tokens()))
    return Tokens(choose_tokens(tokenizer, request.config, counts, config.most_tokens), request, data)
