"""Rows of similar lengths go through a model together, and every figure stays at its row."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import DataCollatorWithPadding

from loraprune.data import Collator, Row, TokenRows
from loraprune.evaluation.batches import by_length
from loraprune.evaluation.perplexity import perplexity
from loraprune.evaluation.tasks import Prepared, find_task
from loraprune.evaluation.tasks.labelled_rows import LabelledRows
from loraprune.evaluation.tasks.masked_lm import MaskedRows
from tests.evaluation.tasks.cases import word_tokenizer
from tests.tiny import tiny_model

LENGTHS = (4, 30, 5, 29, 6, 28)


@given(st.lists(st.integers(0, 9)), st.integers(1, 4))
def test_every_row_is_in_one_batch_and_lengths_only_fall(lengths: list[int], batch: int) -> None:
    places = [place for some in by_length(lengths, batch) for place in some]
    assert sorted(places) == list(range(len(lengths)))
    assert [lengths[place] for place in places] == sorted(lengths, reverse=True)
    assert all(len(some) == batch for some in by_length(lengths, batch)[:-1])


def test_rows_of_one_length_stay_in_order() -> None:
    assert by_length([7] * 5, 2) == [[0, 1], [2, 3], [4]]


def token_rows() -> TokenRows:
    draw = torch.Generator().manual_seed(1)
    rows = [torch.randint(5, 40, (length,), generator=draw).tolist() for length in LENGTHS]
    return TokenRows(tuple(Row(row, row) for row in rows), {})


def test_a_perplexity_computes_less_padding_and_keeps_the_order_of_rows() -> None:
    model, rows = tiny_model("llama"), token_rows()
    seen: list[int] = []

    def note(_: nn.Module, __: tuple[()], inputs: dict[str, Any]) -> None:
        seen.append(inputs["input_ids"].numel())

    model.register_forward_pre_hook(note, with_kwargs=True)
    found = perplexity(model, rows, batch=2)
    assert seen == [2 * 30, 2 * 28, 2 * 5]
    assert sum(seen) < 2 * (30 + 29 + 28)  # the control: what batches in the order of the rows take
    alone = [perplexity(model, rows.take([place])).row_sums[0] for place in range(len(rows))]
    assert found.row_sums == pytest.approx(alone, rel=1e-5)
    assert found.row_sums != pytest.approx(sorted(alone), rel=1e-5)  # the control
    assert found.row_targets == tuple(length - 1 for length in LENGTHS)


def test_hidden_tokens_and_labels_keep_the_order_of_rows() -> None:
    masked = MaskedRows(token_rows(), mask_token=4, special=frozenset(range(5)), vocabulary=40)
    labelled = LabelledRows(
        tuple(
            {"input_ids": row.input_ids, "label": label}
            for row, label in zip(token_rows().rows, (0, 0, 1, 2, 1, 2), strict=True)
        ),
        {},
        ("accuracy",),
    )
    cases: list[tuple[str, Any, Any]] = [
        ("bert", masked, Collator(0)), ("bert-classes", labelled, DataCollatorWithPadding(word_tokenizer()))
    ]  # fmt: skip
    for variant, rows, collator in cases:
        model = tiny_model(variant)
        task = find_task(model.config)
        together, alone = (
            task.evaluate(model, Prepared(None, rows, collator, word_tokenizer()), batch).by_row for batch in (2, 1)
        )
        for one, other in zip(together, alone, strict=True):
            assert one == pytest.approx(other, rel=1e-4)
        assert together != alone[::-1]  # the control
