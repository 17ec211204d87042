"""Sources: every format reads alike, and whatever is wrong with a file is said with its place and a remedy."""

from __future__ import annotations

import csv
import json

import datasets
import pytest

from loraprune.data import load_data, load_rows
from loraprune.errors import DataError
from tests.samples import documents, joined, jsonl


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_every_format_gives_the_same_rows(tmp_path, write, tokenizer, suffix):
    texts = [*documents(5), "NA", "null", "12", 'quoted "words", and\na second line', "naïve café"]
    table = [{"id": index if index % 2 else f"n{index}", "text": text} for index, text in enumerate(texts)]
    expected = joined(load_rows(write("expected.jsonl", jsonl(*table)), tokenizer, length=16))
    path = tmp_path / f"data.{suffix}"
    if suffix == "csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["", "text"], *([row["id"], row["text"]] for row in table)])
    elif suffix == "parquet":
        datasets.Dataset.from_dict({"text": texts}).to_parquet(path)
    else:
        path.write_text(json.dumps(table) if suffix == "json" else jsonl(*table), encoding="utf-8")
    assert joined(load_rows(str(path), tokenizer, length=16)) == expected


def test_file_names_are_no_patterns(write, tokenizer):
    assert len(load_rows(write("part[1]*.csv", "text\nabc\n"), tokenizer, length=5)) == 1


BROKEN = {
    "empty.txt": (b"", "empty.txt: the file is empty"),
    "blank.txt": (b" \n\n", "it holds no text"),
    "blank.jsonl": (b"\n\n", "it holds no rows"),
    "binary.txt": (b"MZ\x00\x01", "binary file"),
    "latin.txt": (b"line\ncaf\xe9", r"latin.txt, line 2: not UTF-8 text \(byte 0xe9\)"),
    "latin.csv": (b"text\ncaf\xe9\n", "latin.csv, line 2: not UTF-8"),
    "torn.jsonl": (b'{"text": "a"}\n\n{"text": "b', r"torn.jsonl, line 3: malformed JSON \(Unterminated string"),
    "torn.json": (b'[{"text": "a"},\n{"text": }]', "torn.json, line 2: malformed JSON"),
    "list.jsonl": (b'["a"]\n', "line 1: a list where an object is needed"),
    "null.jsonl": (b'{"text": "a"}\n{"text": null}\n', "null.jsonl, line 2: text is missing or null"),
    "number.jsonl": (b'{"text": "a"}\n{"text": 5}\n', "number.jsonl, line 2: text is int '5', a string is needed"),
    "columns.jsonl": (
        b'{"body": "a", "title": "b"}\n',
        "columns found: body, title; needed: `text`, or `instruction` and",
    ),
    "half.csv": (b"instruction,answer\na,b\n", "columns found: instruction, answer"),
    "header.csv": (b"text\n", "it holds no text"),
    "ragged.csv": (b"text\na\nb,c,d\n", "ragged.csv, line 3: 3 fields, and the header has 1"),
    "quote.csv": (b'text\n"a\n', "quote.csv, line 2: a quoted cell begins here and is not closed"),
    "torn.parquet": (b"PAR1torn", "torn.parquet: not a readable .parquet file"),
    "word.docx": (b"PK", r"files of type '.docx' are not read"),
    "noanswer.jsonl": (b'{"instruction": "a", "response": "b"}\n{"instruction": "a"}\n', "line 2: response is missing"),
    "chat.jsonl": (b'{"messages": "hello"}\n', "line 1: messages is str 'hello', a list"),
    "nochat.jsonl": (b'{"messages": []}\n', "line 1: messages is empty, a list"),
    "role.jsonl": (b'{"messages": [{"content": "hi"}]}\n', "line 1: role of message 1 is missing"),
    "parts.jsonl": (
        b'{"messages": [{"role": "user", "content": [{"type": "text"}]}]}\n',
        "content of message 1 has a part of type 'text'",
    ),
    "user.jsonl": (b'{"messages": [{"role": "user", "content": "hi"}]}\n', "line 1: no message has the role assistant"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_file_is_named_with_place_and_remedy(write, tokenizer, name):
    content, message = BROKEN[name]
    with pytest.raises(DataError, match=message) as caught:
        load_data(write(name, content), tokenizer, length=4)
    assert str(caught.value).startswith("--data ")
    assert "\n" not in str(caught.value)
    assert ": " in str(caught.value).split(name)[-1]


def test_torn_parquet_is_an_error(tmp_path, tokenizer):
    path = tmp_path / "a.parquet"
    datasets.Dataset.from_dict({"text": documents(500)}).to_parquet(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"not a readable \.parquet file"):
        load_rows(str(path), tokenizer, length=4)


def test_missing_file_names_its_nearest(write, tokenizer):
    path = write("train.jsonl", jsonl({"text": "a"}))
    with pytest.raises(DataError, match=r"no such file or folder \(did you mean 'train.jsonl'"):
        load_rows(path.replace("train", "trian"), tokenizer, length=4)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "the folder is empty"),
        ({"a.txt": "a", "b.jsonl": "{}"}, ".jsonl and .txt files"),
        ({"a.txt": "a", "README.md": "b"}, "holds 'README.md'"),
        ({"a.txt": "a", "more/b.txt": "b"}, "holds 'more'"),
        ({"a.jsonl": '{"text": "a"}', "b.jsonl": '{"instruction": "a", "response": "b"}'}, "b.jsonl holds instruction"),
    ],
)
def test_folder_of_anything_but_one_kind_is_refused(tmp_path, write, tokenizer, files, message):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / ".hidden").touch()
    for name, content in files.items():
        write(f"folder/{name}", content)
    with pytest.raises(DataError, match=message):
        load_rows(str(folder), tokenizer, length=4)


def test_reading_leaves_progress_bars_as_they_were(tmp_path, tokenizer):
    for change, disabled in ((datasets.disable_progress_bars, True), (datasets.enable_progress_bars, False)):
        change()
        datasets.Dataset.from_dict({"text": documents(3)}).to_parquet(tmp_path / "a.parquet")
        load_rows(str(tmp_path / "a.parquet"), tokenizer, length=5)
        assert datasets.are_progress_bars_disabled() is disabled


def give_hub(monkeypatch, splits: dict[str, list[str]]) -> list[tuple[str, str | None]]:
    asked = []

    def load_dataset(name: str, configuration: str | None) -> datasets.DatasetDict:
        asked.append((name, configuration))
        return datasets.DatasetDict(
            {split: datasets.Dataset.from_dict({"text": rows}) for split, rows in splits.items()}
        )

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def test_hub_data_are_judged_by_their_validation_split(tokenizer, monkeypatch):
    asked = give_hub(monkeypatch, {"test": ["test"], "train": documents(3), "validation": ["validation"]})
    data = load_data("org/name:part", tokenizer, length=12)
    assert tokenizer.decode(joined(data.held_out)) == "<s>validation</s>"
    assert (data.train.protocol["split"], data.held_out.protocol["split"]) == ("train", "validation")
    assert asked == [("org/name", "part")]


def test_hub_data_without_validation_lose_a_tenth(tokenizer, monkeypatch):
    give_hub(monkeypatch, {"train": [*documents(3), "the last"]})
    assert tokenizer.decode(joined(load_data("name", tokenizer, length=9).held_out)).startswith("<s>the last")


def test_hub_that_cannot_be_had_is_one_clear_error(tokenizer, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        DataError,
        match=r"^--data 'org/none': no such file or folder, and no data set of the hub could be loaded .*HF_HUB_OFFLINE",
    ):
        load_data("org/none", tokenizer, length=8)
