"""Compressed files, tables with tabs, patterns and folders of `save_to_disk` give the rows of the plain file."""

from __future__ import annotations

import gzip
from pathlib import Path

import datasets
import pytest

from loraprune.data import load_data, read_examples
from loraprune.data.sources import open_source
from loraprune.errors import DataError
from tests.samples import byte_tokenizer, documents, jsonl

TEXTS = documents(8)
ROWS = jsonl(*({"text": text} for text in TEXTS))


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.txt.gz", "a.csv.gz", "a.jsonl.zst", "a.tsv", "A.JSONL.GZ"])
def test_a_form_of_a_file_gives_its_rows(name: str, tmp_path: Path) -> None:
    lower = name.lower()
    content = ROWS if "jsonl" in lower else "\n".join(["text\tlabel" if "tsv" in lower else "text", *TEXTS])
    if "tsv" in lower:
        content = "\n".join(["text\tlabel", *(f'{text}\t"x, y"' for text in TEXTS)])
    data = content.encode()
    if lower.endswith(".zst"):
        data = pytest.importorskip("zstandard").compress(data)
    (tmp_path / name).write_bytes(gzip.compress(data) if lower.endswith(".gz") else data)
    found = read_examples(str(tmp_path / name), "train").texts
    assert list(found) == (["\n".join(["text", *TEXTS])] if "txt" in lower else TEXTS)


def test_a_torn_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(ROWS.encode())[:-20])
    with pytest.raises(DataError, match=r"a\.jsonl\.gz: not a complete \.gz file"):
        read_examples(str(tmp_path / "a.jsonl.gz"), "train")
    (tmp_path / "b.tar.gz").write_bytes(gzip.compress(b"x"))
    with pytest.raises(DataError, match=r"files of type '\.gz' are not read"):
        read_examples(str(tmp_path / "b.tar.gz"), "train")


def test_a_pattern_names_its_files(tmp_path: Path) -> None:
    for place in range(2):
        (tmp_path / f"part-{place}.jsonl").write_text(jsonl({"text": f"part {place}"}))
    (tmp_path / "other.txt").write_text("other")
    assert list(read_examples(str(tmp_path / "part-*.jsonl"), "train").texts) == ["part 0", "part 1"]
    with pytest.raises(DataError, match="no such file"):
        read_examples(str(tmp_path / "none-*.jsonl"), "train")


def test_a_folder_of_save_to_disk_is_read_with_its_splits(tmp_path: Path) -> None:
    one = datasets.Dataset.from_dict({"text": TEXTS})
    one.save_to_disk(tmp_path / "one")
    assert list(read_examples(str(tmp_path / "one"), "train").texts) == TEXTS
    datasets.DatasetDict({"train": one, "test": one.select([0])}).save_to_disk(tmp_path / "two")
    source = open_source(str(tmp_path / "two"))
    assert (source.read("train").split, source.read("held_out").split) == ("train", "test")
    data = load_data(str(tmp_path / "two"), byte_tokenizer(), length=16)
    assert data.held_out.protocol["split"] == "test"


@pytest.mark.parametrize(("name", "cell"), [("a.csv", "good, film"), ("a.tsv", "good\tfilm")])
def test_a_row_with_more_fields_than_the_header_is_refused(name: str, cell: str, tmp_path: Path) -> None:
    delimiter = "," if name.endswith("csv") else "\t"
    rows = [delimiter.join((cell, "1"))] * 3
    (tmp_path / name).write_text("\n".join([delimiter.join(("text", "label")), *rows]))
    with pytest.raises(DataError, match=rf"{name}, line 2: 3 fields, and the header has 2"):
        read_examples(str(tmp_path / name), "train")
    quoted = [delimiter.join((f'"{cell}"', "1"))] * 3  # the control
    (tmp_path / name).write_text("\n".join([delimiter.join(("text", "label")), *quoted]))
    assert list(read_examples(str(tmp_path / name), "train").texts) == [cell] * 3


def test_a_text_longer_than_a_field_of_csv_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\n" + "word " * 40_000)
    assert len(read_examples(str(tmp_path / "a.csv"), "train").texts[0]) > 131_072


def test_a_speaker_that_is_a_list_is_refused(tmp_path: Path) -> None:
    turn = {"from": ["human"], "value": "x"}
    (tmp_path / "a.jsonl").write_text(jsonl({"conversations": [turn, {"from": "gpt", "value": "y"}]}))
    with pytest.raises(DataError, match="role"):
        read_examples(str(tmp_path / "a.jsonl"), "train")
