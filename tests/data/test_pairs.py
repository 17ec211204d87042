"""Pairs of a source and a target: which columns, how they are cut and padded, and what is refused."""

from __future__ import annotations

import json

import pytest
from tokenizers import processors

from loraprune.data import NO_TARGET, PairCollator, encode_pairs, load_data, load_rows
from loraprune.errors import DataError
from tests.samples import byte_tokenizer


@pytest.fixture
def tokenizer():
    """A byte a token, and `</s>` after every text, as T5's tokenizer does."""
    made = byte_tokenizer(bos=False)
    ending = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    made.backend_tokenizer.post_processor = ending
    return made


def lines(*rows: dict[str, object]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def texts(tokenizer, rows):
    return [(tokenizer.decode(row.input_ids), tokenizer.decode(row.labels)) for row in rows.rows]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"source": "ab", "target": "c"}, ("ab</s>", "c</s>")),
        ({"document": "ab", "summary": "c", "id": 3}, ("ab</s>", "c</s>")),
        ({"article": "ab", "highlights": "c"}, ("ab</s>", "c</s>")),
        ({"instruction": "ab", "response": "c"}, ("ab</s>", "c</s>")),
        ({"instruction": "ab", "input": "d", "response": "c"}, ("ab\nd</s>", "c</s>")),
        ({"source": "", "target": "c"}, ("</s>", "c</s>")),
    ],
)
def test_pairs_are_found_by_their_columns(write, tokenizer, row, expected):
    rows = load_rows(write("a.jsonl", lines(row)), tokenizer, length=8, encode=encode_pairs)
    assert texts(tokenizer, rows) == [expected]
    assert rows.protocol["targets"] == len(rows.rows[0].labels)  # the first is predicted too
    assert not rows.shifted


def test_a_csv_file_holds_pairs_too(write, tokenizer):
    rows = load_rows(write("a.csv", "source,target\nab,12\n"), tokenizer, length=8, encode=encode_pairs)
    assert texts(tokenizer, rows) == [("ab</s>", "12</s>")]


def test_long_texts_are_cut_before_what_ends_them(write, tokenizer):
    path = write("a.jsonl", lines({"source": "abcdefgh", "target": "ijkl"}, {"source": "ab", "target": "c"}))
    rows = load_rows(path, tokenizer, length=4, encode=encode_pairs)
    assert texts(tokenizer, rows) == [("abc</s>", "ijk</s>"), ("ab</s>", "c</s>")]
    assert rows.protocol["dropped_tokens"] == 5 + 1


def test_the_last_tenth_is_held_out(write, tokenizer):
    path = write("a.jsonl", lines(*({"source": f"{n:02}", "target": "x"} for n in range(20))))
    data = load_data(path, tokenizer, length=8, encode=encode_pairs)
    assert [source for source, _ in texts(tokenizer, data.held_out)] == ["18</s>", "19</s>"]
    assert (len(data.train), data.train.protocol["targets"]) == (18, 36)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"source": "a"}, "columns found: source; needed: .*`source` and `target`"),
        ({"source": "a", "target": None}, "line 1: target is missing or null, a string is needed"),
        (
            {"source": "a", "target": " "},
            "line 1: the target is empty, so there is nothing to train on: remove the row",
        ),
        ({"instruction": "a", "response": ""}, "line 1: the target is empty"),
        ({"instruction": "a", "response": "b", "system": "c"}, "line 1: it has 3 turns, one question and one answer"),
        ({"instruction": "a", "response": "b", "tools": [{"name": "f"}]}, "line 1: it has tools, which a model"),
        ({"text": "a"}, "it holds text; a model that encodes one text .* `source` and `target`"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "it holds messages; a model that encodes"),
    ],
)
def test_rows_that_are_no_pairs_are_refused(write, tokenizer, content, message):
    with pytest.raises(DataError, match=message):
        load_rows(write("a.jsonl", lines(content)), tokenizer, length=8, encode=encode_pairs)


def test_pairs_are_no_running_text(write, tokenizer):
    with pytest.raises(DataError, match=r"sources and targets are for a model that encodes .* `instruction` and `resp"):
        load_rows(write("a.jsonl", lines({"source": "a", "target": "b"})), tokenizer, length=8)


def test_a_batch_is_padded_on_each_side_and_the_decoder_reads_one_place_later():
    batch = PairCollator(9, 7)([{"input_ids": [1], "labels": [2, 3, 4]}, {"input_ids": [5, 6], "labels": [8]}])
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[1, 9], [5, 6]],
        "attention_mask": [[1, 0], [1, 1]],
        "decoder_input_ids": [[7, 2, 3], [7, 9, 9]],
        "decoder_attention_mask": [[1, 1, 1], [1, 0, 0]],
        "labels": [[2, 3, 4], [8, NO_TARGET, NO_TARGET]],
    }
    wrapped = PairCollator(9, None)([{"input_ids": [1], "labels": [2, 3, 4]}])
    assert wrapped["decoder_input_ids"].tolist() == [[4, 2, 3]]
