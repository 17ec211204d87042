"""Folders whose files are named for training, validation and test: each is used for what its name says."""

from __future__ import annotations

from pathlib import Path

import pytest

from loraprune.data import load_data, load_rows
from loraprune.errors import DataError
from tests.samples import byte_tokenizer, documents, jsonl


def folder(root: Path, **files: int) -> Path:
    """Write files of so many documents that begin with the name of their file; the names' underscores are hyphens."""
    (root / "d").mkdir()
    for name, count in files.items():
        rows = [{"text": f"{name}: {text}"} for text in documents(count)]
        (root / "d" / f"{name.replace('__', '-')}.jsonl").write_text(jsonl(*rows))
    return root / "d"


def said(rows: object) -> str:
    return byte_tokenizer().decode([token for row in rows.rows for token in row.input_ids])  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("files", "judged"),
    [
        ({"train": 40, "validation": 8, "test": 8}, "validation"),
        ({"train": 40, "test": 8}, "test"),
        ({"train__00000__of__00002": 20, "train__00001__of__00002": 20, "dev__0": 8}, "dev"),
        ({"train_sft": 40, "test_sft": 8, "test_gen": 8}, "test"),
        ({"alpaca_train": 40, "alpaca_dev": 8, "alpaca__test": 8}, "dev"),
    ],
)
def test_a_folder_is_trained_on_by_its_training_files_alone(files: dict[str, int], judged: str, tmp_path: Path) -> None:
    place = str(folder(tmp_path, **files))
    data = load_data(place, byte_tokenizer(), length=32)
    assert (data.train.protocol["split"], data.held_out.protocol["split"]) == ("train", judged)
    assert "train" in said(data.train)
    assert all(name not in said(data.train) for name in ("validation:", "test", "dev"))
    assert "train" not in said(data.held_out)
    assert judged in said(load_rows(place, byte_tokenizer(), length=32))  # as `evaluate` reads it
    only = load_data(place, byte_tokenizer(), length=32, held_out=place)
    assert only.held_out.rows == data.held_out.rows


def test_files_of_one_purpose_or_without_one_are_all_used(tmp_path: Path) -> None:
    one, other = tmp_path / "1", tmp_path / "2"
    one.mkdir(), other.mkdir(), (ends := tmp_path / "3").mkdir()
    by_chance = load_data(str(folder(ends, notes=20, unit_test=20)), byte_tokenizer(), length=32)
    assert "unit_test" in said(by_chance.train) + said(by_chance.held_out)
    mixed = load_data(str(folder(one, chapter_1=20, test_driven=20)), byte_tokenizer(), length=32)
    assert mixed.train.protocol["split"] == "train"
    assert "chapter_1" in said(mixed.train)
    assert "test_driven" in said(mixed.train) + said(mixed.held_out)
    assert len(load_data(str(folder(other, train_0=10, train_1=10)), byte_tokenizer(), length=32).held_out)


@pytest.mark.parametrize(
    ("files", "words"),
    [({"train": 9, "extra": 9}, "extra.jsonl is not"), ({"validation": 9, "test": 9}, "none for train")],
)
def test_a_folder_that_says_it_of_some_files_only_is_refused(files: dict[str, int], words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=words):
        load_data(str(folder(tmp_path, **files)), byte_tokenizer(), length=32)


def test_a_split_of_the_folder_may_be_named_to_judge_by_but_not_the_one_that_is_trained_on(tmp_path: Path) -> None:
    place = folder(tmp_path, train=40, validation=8, test=8)
    data = load_data(str(place), byte_tokenizer(), length=32, held_out=str(place / "test.jsonl"))
    assert "test" in said(data.held_out)
    with pytest.raises(DataError, match="trained on as part of --data"):
        load_data(str(place), byte_tokenizer(), length=32, held_out=str(place / "train.jsonl"))
