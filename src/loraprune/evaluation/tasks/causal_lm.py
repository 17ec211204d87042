"""Causal language modelling: the next token, from texts, instructions or chats; evaluated by perplexity."""

from __future__ import annotations

from jaxtyping import Int, Shaped
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from loraprune.data import NO_TARGET, Collator, TokenRows, load_data, load_rows, read_examples
from loraprune.evaluation.measurement import Measured
from loraprune.evaluation.perplexity import perplexity
from loraprune.evaluation.tasks.base import Inputs, Prepared, Request, Task, register_task
from loraprune.evaluation.tasks.text import fit_length, fitting_tokenizer, random_tokens


def prepare(request: Request) -> Prepared:
    """Read texts or chats as rows of tokens."""
    tokenizer = fitting_tokenizer(request)
    length = fit_length(request)
    pad = tokenizer.pad_token_id
    assert isinstance(pad, int)
    if request.data is None:
        assert request.eval is not None
        return Prepared(
            None, load_rows(request.eval, tokenizer, length=length, columns=request.columns), Collator(pad), tokenizer
        )
    data = load_data(request.data, tokenizer, length=length, held_out=request.eval, columns=request.columns)
    return Prepared(data.train, data.held_out, Collator(pad), tokenizer)


def evaluate(model: PreTrainedModel, prepared: Prepared, batch: int) -> Measured:
    """Measure the perplexity on the held-out rows."""
    assert isinstance(prepared.held_out, TokenRows)
    return perplexity(model, prepared.held_out, batch=batch).measured()


def probe(config: PreTrainedConfig, rows: int, tokens: int) -> Inputs:
    """Return token ids, without a cache."""
    return {"input_ids": random_tokens(config, rows, tokens), "use_cache": False}


def predictions(
    logits: Shaped[Tensor, "batch seq classes"], labels: Int[Tensor, "batch seq"]
) -> Shaped[Tensor, "targets classes"]:
    """Return the logits before each target: position t predicts label t + 1."""
    return logits[:, :-1][labels[:, 1:] != NO_TARGET]


register_task(
    Task(
        "causal-lm", "AutoModelForCausalLM", prepare, evaluate, probe, predictions, fitting_tokenizer, read_examples,
        pipeline="text-generation",
        counts_targets=True,
    )
)  # fmt: skip
