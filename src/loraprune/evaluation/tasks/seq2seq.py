"""Sequence to sequence: a model encodes a source and writes a target; evaluated by the perplexity of the targets."""

from __future__ import annotations

from jaxtyping import Int, Shaped
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from loraprune.data import (
    NO_TARGET,
    Columns,
    PairCollator,
    TokenRows,
    encode_pairs,
    find_pairs,
    load_data,
    load_rows,
    read_examples,
)
from loraprune.errors import ConfigError
from loraprune.evaluation.measurement import Measured
from loraprune.evaluation.perplexity import perplexity
from loraprune.evaluation.tasks.base import Inputs, Prepared, Request, Task, register_task
from loraprune.evaluation.tasks.text import fit_length, fitting_tokenizer, random_tokens

WRAPPING = ("mbart",)
"""model types whose decoder begins with the last token of its target, a language; source: transformers' modeling_mbart.py"""


def prepare(request: Request) -> Prepared:
    """Read pairs: a row is the tokens of a source and those of its target, each at most `length`."""
    tokenizer = fitting_tokenizer(request)
    length = fit_length(request)
    pad = tokenizer.pad_token_id
    assert isinstance(pad, int)
    collator = PairCollator(pad, first_token(request))
    if request.data is None:
        assert request.eval is not None
        rows = load_rows(request.eval, tokenizer, length=length, encode=encode_pairs, columns=request.columns)
        return Prepared(None, rows, collator, tokenizer)
    data = load_data(
        request.data, tokenizer, length=length, held_out=request.eval, encode=encode_pairs, columns=request.columns
    )
    return Prepared(data.train, data.held_out, collator, tokenizer)


def first_token(request: Request) -> int | None:
    """Return the token that the decoder begins with; None where it is the last one of each target.

    Raises:
        ConfigError: if the configuration names none.
    """
    if request.config.model_type in WRAPPING:
        return None
    start: int | None = getattr(request.config, "decoder_start_token_id", None)
    if start is None:
        raise ConfigError(
            f"--model {request.model}: config.json has no decoder_start_token_id, the token that every target begins with: add it "
            "(T5's is its padding token, 0)"
        )
    return start


def evaluate(model: PreTrainedModel, prepared: Prepared, batch: int) -> Measured:
    """Measure the perplexity of the held-out targets, each given its source and the true tokens before."""
    assert isinstance(prepared.held_out, TokenRows)
    return perplexity(model, prepared.held_out, batch=batch, collator=prepared.collator).measured()


def probe(config: PreTrainedConfig, rows: int, tokens: int) -> Inputs:
    """Return token ids of sources and of as long targets, without a cache."""
    ids = random_tokens(config, rows, tokens)
    return {"input_ids": ids, "decoder_input_ids": ids.flip(1), "use_cache": False}


def predictions(
    logits: Shaped[Tensor, "batch seq classes"], labels: Int[Tensor, "batch seq"]
) -> Shaped[Tensor, "targets classes"]:
    """Return the logits at the position of each target."""
    return logits[labels != NO_TARGET]


def read(source: str, part: str, columns: Columns) -> object:
    """Read pairs."""
    return find_pairs(read_examples(source, part, columns))


register_task(
    Task(
        "seq2seq", "AutoModelForSeq2SeqLM", prepare, evaluate, probe, predictions, fitting_tokenizer, read,
        pipeline="text2text-generation",
    )
)  # fmt: skip
