"""`--columns`: data whose columns have other names are the same rows, and what is not there is told with what is."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest

from loraprune.config.columns import ROLES, parse_columns
from loraprune.config.training import FinetuneConfig
from loraprune.data import load_data, read_examples
from loraprune.data.files import USED_COLUMNS
from loraprune.data.images import open_images
from loraprune.data.labelled import make_labelled
from loraprune.data.sources import open_source
from loraprune.errors import ConfigError, DataError
from tests.cli.cases import refused
from tests.data.images.conftest import write_images
from tests.evaluation.tasks.cases import write_csv
from tests.samples import byte_tokenizer, jsonl, save_inputs

ASKED = [
    {"question": f"what is {n}", "answer": f"it is {n * n}", "text": "a template of its own", "id": n}
    for n in range(12)
]
PLAIN = [{"prompt": row["question"], "response": row["answer"]} for row in ASKED]
COLUMNS = parse_columns("prompt=question,response=answer")


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    """Write rows as the file, or the folder of `save_to_disk`, that the name says."""
    if path.suffix == ".csv":
        return write_csv(path, rows)
    if path.suffix == ".jsonl":
        path.write_text(jsonl(*rows))
    elif path.suffix == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(path)
    else:
        datasets.Dataset.from_list(rows).save_to_disk(path)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet", "saved"])
def test_columns_of_any_names_give_the_rows_of_ours(name: str, tmp_path: Path) -> None:
    theirs = str(write(tmp_path / name, ASKED))
    ours = str(write(tmp_path / "ours.jsonl", PLAIN))
    tokenizer = byte_tokenizer()
    found = load_data(theirs, tokenizer, length=80, columns=COLUMNS)
    expected = load_data(ours, tokenizer, length=80)
    assert [row.input_ids for row in found.train.rows] == [row.input_ids for row in expected.train.rows]
    assert [row.labels for row in found.held_out.rows] == [row.labels for row in expected.held_out.rows]
    assert read_examples(theirs, "train").format == "text"  # the control: without it another column is taken


def test_the_held_out_file_has_the_same_columns(tmp_path: Path) -> None:
    data, held_out = (str(write(tmp_path / name, rows)) for name, rows in (("a.jsonl", ASKED), ("b.jsonl", ASKED[:6])))
    assert load_data(data, byte_tokenizer(), length=80, held_out=held_out, columns=COLUMNS).held_out
    write(tmp_path / "b.jsonl", PLAIN)
    with pytest.raises(DataError, match=r"--eval .*no column 'question'"):
        load_data(data, byte_tokenizer(), length=80, held_out=held_out, columns=COLUMNS)


def test_labels_and_their_names_are_found(tmp_path: Path) -> None:
    table = datasets.Dataset.from_list([{"body": "good", "y": 1}, {"body": "bad", "y": 0}])
    table.cast_column("y", datasets.ClassLabel(names=["no", "yes"])).save_to_disk(tmp_path / "d")
    part = open_source(str(tmp_path / "d"), parse_columns("text=body, label=y")).read("train")
    assert [(example.texts, example.label) for example in make_labelled(part).examples] == [
        (("good",), "yes"),
        (("bad",), "no"),
    ]
    with pytest.raises(DataError, match=r"columns found: body, y; needed: .*--columns"):
        make_labelled(open_source(str(tmp_path / "d")).read("train"))


def test_images_are_found(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", each=2)
    files = sorted(folder.rglob("*.png"))
    rows = [{"photo": {"bytes": file.read_bytes(), "path": None}, "kind": file.parent.name} for file in files]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
    found = open_images(str(tmp_path / "a.parquet"), "train", parse_columns("image=photo,label=kind"))
    assert set(found.classes) == {file.parent.name for file in files}
    with pytest.raises(DataError, match=r"no column 'image' among photo, kind: .*--columns image=COLUMN"):
        open_images(str(tmp_path / "a.parquet"), "train")
    with pytest.raises(DataError, match="leave --columns out"):
        open_images(str(folder), "train", parse_columns("image=photo,label=kind"))


def test_what_is_not_there_is_told_with_what_is(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    save_inputs(tmp_path)
    data = write(tmp_path / "a.jsonl", ASKED)
    run = ["prune", "--model", str(tmp_path / "model"), "--data", str(data), "--output", str(tmp_path / "out")]
    words = ("no column 'reply'", "columns found: question, answer, text, id")
    refused([*run, "--columns", "prompt=question,response=reply"], capfd, *words, root=tmp_path)
    refused([*run, "--columns", "prompt=question"], capfd, "columns found: prompt; needed", "--columns", root=tmp_path)
    refused([*run, "--columns", "promt=question"], capfd, "did you mean 'prompt'", root=tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [("body", "not ROLE=COLUMN"), ("text=", "not ROLE=COLUMN"), ("", "not ROLE=COLUMN"), ("txt=body", "did you mean 'text'"),
     ("text=a,text=b", "text is given twice")],
)  # fmt: skip
def test_a_malformed_option_is_told(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        FinetuneConfig(model="m", data="d", output="/none/out", columns=text)


def test_every_role_is_a_name_that_needs_no_option() -> None:
    assert set(ROLES) - {"image"} <= set(USED_COLUMNS)
    assert parse_columns("text=a=b") == {"text": "a=b"}
    assert (
        json.dumps(FinetuneConfig(model="m", data="d", output="/none/out", columns="text=a").roles()) == '{"text": "a"}'
    )
