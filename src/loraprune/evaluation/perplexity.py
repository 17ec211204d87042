"""Perplexity over fixed windows.

Knows nothing about pruning: dense and pruned models are evaluated by the same functions on the same tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from loraprune.data import Collator, TokenRows
from loraprune.errors import ConfigError, DataError, NumericsError
from loraprune.evaluation.batches import by_length
from loraprune.evaluation.measurement import PERPLEXITY, Measured, ratio_error
from loraprune.models.modes import evaluation_mode
from loraprune.runtime.progress import shown

NO_TARGET = -100
"""label of a token that is not to be predicted"""

FILLING = Collator(0)
"""pads short rows with a token of the vocabulary, which is masked out and not a target"""

CHUNK_ELEMENTS = 1 << 24
"""logits cast to float32 at a time: 64 MiB, that is 128 tokens of a vocabulary of 128k"""

LARGEST_NLL = math.log(torch.finfo(torch.float64).max)
"""above it the perplexity is not finite"""


Collate: TypeAlias = Callable[[Sequence[Mapping[str, list[int]]]], Mapping[str, Shaped[Tensor, "rows ..."]]]


@dataclass(frozen=True, slots=True)
class Perplexity:
    """Mean negative log-likelihood of a text under a model, and how it was measured."""

    value: float
    """exp(nll)"""
    nll: float
    """mean over all targets, in nats a token"""
    standard_error: float | None
    """of `nll`, from the spread between rows; None for a single row"""
    tokens: int
    """targets predicted"""
    protocol: Mapping[str, object]
    row_sums: tuple[float, ...] = ()
    """summed loss of every row, in nats"""
    row_targets: tuple[int, ...] = ()

    def measured(self) -> Measured:
        """Return the figures as those of a task."""
        return Measured(
            PERPLEXITY, self.value, "lower", self.standard_error, {"tokens": self.tokens}, self.protocol, {"nll": self.nll},
            tuple(zip(self.row_sums, self.row_targets, strict=True)),
        )  # fmt: skip


def token_nll(logits: Float[Tensor, "batch seq vocab"], labels: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch seq"]:
    """Return the float32 negative log-likelihood of each label at its position, in nats, and 0 where there is no target.

    Logits are cast to float32 in chunks, never as a whole.
    """
    batch, length, vocabulary = logits.shape
    nll = torch.zeros(batch, length, dtype=torch.float32, device=logits.device)
    chunk = max(1, CHUNK_ELEMENTS // vocabulary)
    for row in range(batch):
        for start in range(0, length, chunk):
            part = slice(start, min(start + chunk, length))
            nll[row, part] = functional.cross_entropy(
                logits[row, part].float(), labels[row, part], ignore_index=NO_TARGET, reduction="none"
            )
    return nll


def perplexity(
    model: PreTrainedModel,
    rows: TokenRows,
    *,
    batch: int = 16,
    limit: int | None = None,
    collator: Collate = FILLING,
    progress: Callable[[int, int], None] | None = None,
) -> Perplexity:
    """Measure the perplexity of `model` on the first `limit` rows, each row a separate window.

    Rows of similar lengths are computed together. The first token of running text is never predicted; all target tokens of a pair
    are. At most one batch of logits exists at a time. The model keeps its device, its dtype and its train or eval mode. `collator`
    makes the model's inputs and `labels` of rows; `progress` is called with the rows done and the rows in all.

    Raises:
        ConfigError: `batch` or `limit` is below 1.
        DataError: there are no rows, or no row has a target.
        NumericsError: the loss of a row is NaN or infinite.

    Source: https://huggingface.co/docs/transformers/perplexity, with windows that do not overlap: the mean over tokens, not
    lm-eval's word or byte perplexity.
    """
    for name, number in (("batch", batch), ("limit", limit)):
        if number is not None and number < 1:
            raise ConfigError(f"{name} is {number}: at least 1 row is needed")
    total = len(rows) if limit is None else min(limit, len(rows))
    lengths = [len(row.input_ids) + len(row.labels) for row in rows.rows[:total]]
    sums, counts = [0.0] * total, [0] * total
    done = 0
    with evaluation_mode(model):
        for places in shown(by_length(lengths, batch), "evaluating"):
            features = [rows[place] for place in places]
            for place, row_sum, row_count in _row_sums(model, collator(features), places=places, shifted=rows.shifted):
                sums[place], counts[place] = row_sum, row_count
            done += len(places)
            if progress:
                progress(done, total)
    if not sum(counts):
        raise DataError(f"{total} rows hold no token to predict: evaluate on text of at least two tokens a row")
    nll = math.fsum(sums) / sum(counts)
    if nll > LARGEST_NLL:
        raise NumericsError(
            f"the mean loss is {nll:.3g} nats a token, so its perplexity is not finite: the model is broken"
        )
    longest = max(len(row.input_ids) for row in rows.rows[:total])
    protocol = dict(rows.protocol) | {
        "window_tokens": longest, "limit": limit, "shifted": rows.shifted, "dtype": str(model.dtype).removeprefix("torch."), "batch": batch,
    }  # fmt: skip
    error = ratio_error(sums, counts)
    return Perplexity(math.exp(nll), nll, error, sum(counts), protocol, tuple(sums), tuple(counts))


def _row_sums(
    model: PreTrainedModel, batch: Mapping[str, Tensor], *, places: Sequence[int], shifted: bool
) -> Iterator[tuple[int, float, int]]:
    """Yield the place, the summed loss and the number of targets of each row of one batch."""
    inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
    labels = inputs.pop("labels")
    logits = model(**inputs, use_cache=False).logits
    if shifted:  # place t predicts label t + 1
        logits, labels = logits[:, :-1], labels[:, 1:]
    losses = token_nll(logits, labels)
    targets = (labels != NO_TARGET).sum(dim=1).tolist()
    # Summed in float64 on the CPU: MPS has no float64, and the losses are small beside the logits.
    for place, loss, count in zip(places, losses.cpu().double().sum(dim=1).tolist(), targets, strict=True):
        if not math.isfinite(loss):
            raise NumericsError(f"the loss of row {place} is {loss}: look for NaN weights, or evaluate in float32")
        yield place, loss, count
