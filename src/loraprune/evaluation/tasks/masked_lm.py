"""Masked language modelling: the hidden tokens of texts; evaluated by the perplexity of the hidden tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import torch
from jaxtyping import Int, Shaped
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from loraprune.data import NO_TARGET, Collator, Rows, TokenRows, load_data, load_rows, read_examples
from loraprune.errors import ConfigError, NumericsError
from loraprune.evaluation.batches import by_length
from loraprune.evaluation.measurement import Measured, ratio_error
from loraprune.evaluation.tasks.base import Prepared, Request, Task, register_task
from loraprune.evaluation.tasks.text import fit_length, fitting_tokenizer, padded_tokens
from loraprune.models.modes import evaluation_mode
from loraprune.runtime.progress import shown

HIDDEN, MASKED, REPLACED = 0.15, 0.8, 0.1
"""fraction of the tokens that are targets; of these, the fractions replaced by the mask and by a random token"""


@dataclass(frozen=True, slots=True)
class MaskedRows:
    """Rows of tokens, some hidden: always the same ones of a row, so that dense and pruned model predict the same tokens.

    Source: Devlin et al., BERT (arXiv 1810.04805); masks are fixed here.
    """

    rows: TokenRows
    mask_token: int
    special: frozenset[int]
    vocabulary: int

    @property
    def protocol(self) -> Mapping[str, object]:
        """Return the protocol of the rows."""
        return {**self.rows.protocol, "hidden": HIDDEN}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        ids = torch.tensor(self.rows[index]["input_ids"])
        draw = torch.Generator().manual_seed(crc32(ids.numpy().tobytes()))
        chances, ways = torch.rand(2, len(ids), generator=draw)
        for token in self.special:
            chances[ids == token] = 1.0
        hidden = chances <= max(HIDDEN, chances.min().item())  # one at least
        labels = ids.masked_fill(~hidden, NO_TARGET)
        others = torch.randint(self.vocabulary, ids.shape, generator=draw)
        ids = torch.where(hidden & (ways > 1 - REPLACED), others, ids)
        ids = ids.masked_fill(hidden & (ways < MASKED), self.mask_token)
        return {"input_ids": ids.tolist(), "labels": labels.tolist()}

    def tokens(self) -> Iterator[Sequence[int]]:
        """Yield the tokens of every row before any are hidden."""
        return self.rows.tokens()

    def targets(self) -> Iterator[Sequence[int]]:
        """Yield the tokens of every row, some of which are hidden."""
        return self.rows.tokens()

    def take(self, places: Sequence[int]) -> Rows:
        """Return some of the rows."""
        return MaskedRows(self.rows.take(places), self.mask_token, self.special, self.vocabulary)


def prepare(request: Request) -> Prepared:
    """Read texts as rows of tokens, and hide some of them."""
    tokenizer = fitting_tokenizer(request)
    length = fit_length(request)
    if tokenizer.mask_token_id is None:
        raise ConfigError(f"--model {request.model}: its tokenizer has no mask token: this model does not fill masks")
    pad = tokenizer.pad_token_id
    assert isinstance(pad, int)
    if request.data is None:
        assert request.eval is not None
        held_out = load_rows(request.eval, tokenizer, length=length, columns=request.columns)
        return Prepared(None, _hide(held_out, tokenizer), Collator(pad), tokenizer)
    data = load_data(request.data, tokenizer, length=length, held_out=request.eval, columns=request.columns)
    return Prepared(_hide(data.train, tokenizer), _hide(data.held_out, tokenizer), Collator(pad), tokenizer)


def _hide(rows: TokenRows, tokenizer: PreTrainedTokenizerBase) -> MaskedRows:
    mask = tokenizer.mask_token_id
    assert isinstance(mask, int)
    return MaskedRows(rows, mask, frozenset(tokenizer.all_special_ids), len(tokenizer))


def evaluate(model: PreTrainedModel, prepared: Prepared, batch: int) -> Measured:
    """Measure exp of the mean negative log-likelihood of the hidden tokens of the held-out rows.

    Raises:
        NumericsError: if the loss of a row is NaN or infinite.
    """
    rows = prepared.held_out
    assert isinstance(rows, MaskedRows)
    sums, counts = [0.0] * len(rows), [0] * len(rows)
    right = 0
    with evaluation_mode(model):
        for places in shown(by_length([len(row) for row in rows.tokens()], batch), "evaluating"):
            inputs = {
                name: value.to(model.device)
                for name, value in prepared.collator([rows[place] for place in places]).items()
            }
            labels = inputs.pop("labels")
            logits = model(**inputs).logits.float()
            losses = functional.cross_entropy(logits.transpose(1, 2), labels, ignore_index=NO_TARGET, reduction="none")
            of_rows = losses.cpu().double().sum(1).tolist(), (labels != NO_TARGET).sum(1).tolist()
            for place, loss, count in zip(places, *of_rows, strict=True):
                sums[place], counts[place] = loss, count
            right += int((logits.argmax(-1) == labels).sum())
    nll = math.fsum(sums) / sum(counts)
    if not math.isfinite(nll):
        raise NumericsError(f"the mean loss is {nll}: look for NaN weights, or evaluate in float32")
    protocol = {**rows.protocol, "batch": batch, "dtype": str(model.dtype).removeprefix("torch.")}
    return Measured(
        "perplexity", math.exp(nll), "lower", ratio_error(sums, counts), {"tokens": sum(counts)}, protocol,
        {"nll": nll, "accuracy": right / sum(counts)}, tuple(zip(sums, counts, strict=True)),
    )  # fmt: skip


def predictions(
    logits: Shaped[Tensor, "batch seq classes"], labels: Int[Tensor, "batch seq"]
) -> Shaped[Tensor, "targets classes"]:
    """Return the logits at every hidden token."""
    return logits[labels != NO_TARGET]


register_task(
    Task(
        "masked-lm", "AutoModelForMaskedLM", prepare, evaluate, padded_tokens, predictions, fitting_tokenizer, read_examples,
        pipeline="fill-mask",
        columns=("text",),
    )
)  # fmt: skip
