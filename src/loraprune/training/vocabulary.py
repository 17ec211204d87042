"""Cut the vocabulary of a run's model before it is trained: the run then loads the smaller model from its workspace.

    OUTPUT.partial/vocabulary/    the model with fewer tokens and its tokenizer

Knows nothing about LoRA and pruning.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from shutil import rmtree
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from loraprune.config.training import PruneConfig
from loraprune.data import Rows, TextRows, draw_rows
from loraprune.evaluation.per_byte import density, in_units_of
from loraprune.evaluation.precision import difference, logits_of
from loraprune.evaluation.tasks import Inputs, Prepared
from loraprune.evaluation.tasks.find import PROBE_ROWS, PROBE_TOKENS
from loraprune.models.loading import load_with_head
from loraprune.models.vocabulary import Choice, cut_model_, save_tokenizer
from loraprune.pruning.verify import check_difference
from loraprune.runtime.processes import first_alone
from loraprune.runtime.workspace import VOCABULARY
from loraprune.training.setup import RunSetup

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class VocabularyCut:
    """What a cut of the vocabulary kept: the entry `vocabulary` of a report."""

    asked: str | int
    """the option"""
    dense: int
    """rows of the embedding before the cut"""
    kept: int
    """rows after it"""
    held_out_coverage: float
    """fraction of the tokens of the held-out rows that are kept; the others are written with several tokens"""
    rows_changed: int
    """training rows whose text is split into other tokens than before; with `data` none is expected"""

    def to_json(self) -> dict[str, Any]:
        """Return the entry of a report."""
        return asdict(self)


def cut_vocabulary(setup: RunSetup, workspace: Path) -> tuple[RunSetup, VocabularyCut]:
    """Write the model with the tokens of `setup.tokens`, and return the setup that trains it; figures are comparable with the dense one's.

    Raises:
        VerificationError: if the logits of kept tokens are not the dense model's.
    """
    config, tokens = setup.config, setup.tokens
    assert isinstance(config, PruneConfig)
    assert tokens is not None
    assert config.vocabulary is not None
    choice, before = tokens.choice, tokens.data
    folder = workspace / VOCABULARY
    smaller = choice.config(setup.original)
    first_alone(lambda: _write(setup, choice, smaller, folder))
    request = replace(tokens.request, model=str(folder), config=smaller)
    data = setup.task.prepare(request)
    found = VocabularyCut(
        config.vocabulary, choice.dense, choice.rows, _coverage(before.held_out, choice), _changed(before, data, choice.new)
    )  # fmt: skip
    logger.info(
        "vocabulary: %s of %s tokens are kept, which are %.2f %% of those of the held-out text",
        f"{found.kept:,}", f"{found.dense:,}", 100 * found.held_out_coverage,
    )  # fmt: skip
    if found.rows_changed and config.vocabulary == "data":
        logger.warning(
            "--vocabulary data: %d training rows are split into other tokens than before", found.rows_changed
        )
    drawn = replace(data, train=draw_rows(data.training, config.rows, seed=config.seed))
    task = in_units_of(setup.task, density(data), density(before))
    return replace(setup, place=str(folder), original=smaller, data=drawn, task=task), found


def _write(setup: RunSetup, choice: Choice, smaller: PreTrainedConfig, folder: Path) -> None:
    """Write model and tokenizer, and check the model against the dense one."""
    rmtree(folder, ignore_errors=True)  # of an interrupted run; the same tokens would be chosen again
    model, new = load_with_head(
        setup.place, setup.task.head, device=torch.device("cpu"), trust_remote_code=setup.config.trust_remote_code,
        original=setup.original, values=setup.data.values, new=setup.task.new, seed=setup.config.seed,
    )  # fmt: skip
    probe = setup.task.probe(smaller, PROBE_ROWS, PROBE_TOKENS)
    before = logits_of(model, _as_before(probe, choice))
    cut_model_(model, choice)
    after = logits_of(model, probe)
    if before.shape[-1] != after.shape[-1]:
        before = before[..., list(choice.kept[: choice.rows])]
    check_difference("model with all and with the kept tokens", difference(before, after), model.dtype)
    # A head that the checkpoint lacks is initialised when the run loads the model, and marked as untrained.
    tensors = {
        name: value
        for name, value in model.state_dict().items()
        if not name.startswith(tuple(f"{one}." for one in new))
    }
    model.save_pretrained(folder, state_dict=tensors, max_shard_size=setup.config.max_shard_size)
    smaller.save_pretrained(folder)  # what the data decide, such as labels, is set when the model is loaded
    tokenizer = setup.data.processor
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    save_tokenizer(tokenizer, choice, folder)


def _as_before(probe: Inputs, choice: Choice) -> Inputs:
    """Return inputs with the ids that their tokens had before the cut."""
    kept = torch.tensor(choice.kept)
    return {name: kept[value] if name.endswith("input_ids") else value for name, value in probe.items()}


def _coverage(rows: Rows, choice: Choice) -> float:
    """Return the fraction of the tokens of rows that are kept."""
    assert isinstance(rows, TextRows)
    counts, kept = Counter(chain.from_iterable(rows.tokens())), set(choice.kept)
    return sum(count for token, count in counts.items() if token in kept) / max(1, counts.total())


def _changed(before: Prepared, after: Prepared, new: Mapping[int, int]) -> int:
    """Return how many training rows are not the same tokens under new ids."""
    assert isinstance(before.training, TextRows)
    assert isinstance(after.training, TextRows)

    def renumbered(row: Sequence[int]) -> list[int | None]:
        return [new.get(token) for token in row]

    pairs = zip(before.training.tokens(), after.training.tokens(), strict=False)  # the last row may be longer now
    return sum(renumbered(one) != list(other) for one, other in pairs)
