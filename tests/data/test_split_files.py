"""Folders whose files are named for training, validation and test: each is used for what its name says."""

from __future__ import annotations

import gzip
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
        ({"en.train": 40, "en.valid": 8}, "valid"),
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


def test_a_pattern_is_split_as_a_folder_is(tmp_path: Path) -> None:
    place = folder(tmp_path, train=40, validation=8, test=8)
    data = load_data(str(place / "*.jsonl"), byte_tokenizer(), length=32)
    assert data.train.rows == load_data(str(place), byte_tokenizer(), length=32).train.rows
    only = load_data(str(place / "t*n.jsonl"), byte_tokenizer(), length=32)  # the control: one file, named for training
    assert "train" in said(only.held_out)


def test_a_pattern_may_match_folders_named_for_splits(tmp_path: Path) -> None:
    for split, count in (("train", 40), ("test", 8)):
        (tmp_path / split).mkdir()
        (tmp_path / split / "part.jsonl").write_text(
            jsonl(*({"text": f"{split}: {text}"} for text in documents(count)))
        )
    data = load_data(str(tmp_path / "*" / "*.jsonl"), byte_tokenizer(), length=32)
    assert "test" not in said(data.train)
    assert "train" not in said(data.held_out)
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "part.jsonl").write_text(jsonl({"text": "a"}))
    with pytest.raises(DataError, match=r"test/part.jsonl is named for a split and \S*more/part.jsonl is not"):
        load_data(str(tmp_path / "*" / "*.jsonl"), byte_tokenizer(), length=32)


def test_a_pattern_of_several_types_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.jsonl").write_text(jsonl({"text": "a"}))
    with pytest.raises(DataError, match=r"it holds \.jsonl and \.txt files"):
        load_rows(str(tmp_path / "*"), byte_tokenizer(), length=4)


@pytest.mark.parametrize("pattern", ["", "*.jsonl*"])
def test_a_file_beside_its_compressed_form_is_refused(pattern: str, tmp_path: Path) -> None:
    place = folder(tmp_path, train=40)
    assert load_rows(str(place / pattern), byte_tokenizer(), length=32)  # the control
    (place / "train.jsonl.gz").write_bytes(gzip.compress((place / "train.jsonl").read_bytes()))
    with pytest.raises(DataError, match=r"train\.jsonl and train\.jsonl\.gz are the same file by their names"):
        load_rows(str(place / pattern), byte_tokenizer(), length=32)


@pytest.mark.parametrize("form", ["link", "copy"])
def test_evaluation_files_that_are_the_training_files_are_refused(form: str, tmp_path: Path) -> None:
    place = folder(tmp_path, train=40)
    if form == "link":
        (place / "validation.jsonl").symlink_to(place / "train.jsonl")
    else:
        (place / "validation.jsonl").write_bytes((place / "train.jsonl").read_bytes())
    with pytest.raises(DataError, match="is in it twice, to train on and to evaluate on"):
        load_data(str(place), byte_tokenizer(), length=32)
    with pytest.raises(DataError, match=r"--eval .*trained on as part of --data"):
        load_data(str(place / "train.jsonl"), byte_tokenizer(), length=32, held_out=str(place / "validation.jsonl"))
    (place / "validation.jsonl").unlink()
    (place / "validation.jsonl").write_text(jsonl({"text": "other " * 20}))
    assert load_data(str(place), byte_tokenizer(), length=32).held_out  # the control
