"""Labelled texts: which columns, which classes, which part is held out; GLUE's files by name, as they are on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from loraprune.data import labelled, open_source
from loraprune.data.files import Table
from loraprune.data.glue import TASKS, GlueTask, glue_on_hub, glue_task
from loraprune.data.labelled import Example, class_names, class_numbers, is_regression, make_labelled
from loraprune.data.sources import Part
from loraprune.errors import DataError
from tests.samples import jsonl


def examples(*labels: object) -> list[Example]:
    return [Example(f"row {place}", ("text",), label) for place, label in enumerate(labels, start=1)]


@pytest.mark.parametrize(
    ("labels", "names", "numbers"),
    [
        ((1, 0, 1), ("0", "1"), [1, 0, 1]),
        (("2", "0"), ("0", "1", "2"), [2, 0]),  # a class without a row keeps its number
        (("no", "yes", "no"), ("no", "yes"), [0, 1, 0]),
        ((True, False), ("False", "True"), [1, 0]),
        ((10, 9), tuple(str(number) for number in range(11)), [10, 9]),
    ],
)
def test_classes_are_numbered_by_their_number_or_in_alphabetical_order(
    labels: tuple[object, ...], names: tuple[str, ...], numbers: list[int]
) -> None:
    assert class_names(examples(*labels)) == names
    assert class_numbers(examples(*labels), names) == numbers
    assert not is_regression(examples(*labels))


def test_numbers_with_a_fraction_are_no_classes() -> None:
    assert is_regression(examples("0.5", "1"))
    assert is_regression(examples(0.5, 1))
    assert not is_regression(examples("0.5", "one"))
    with pytest.raises(DataError, match="row 2: label 'one' is not a number"):
        labelled.numbers(examples("0.5", "one"))
    with pytest.raises(DataError, match="row 1: label 'nan' is not a number"):
        labelled.numbers(examples("nan"))


@pytest.mark.parametrize("columns", [("text",), ("sentence",), ("premise", "hypothesis"), ("question", "sentence")])
def test_columns_are_found_by_their_usual_names(tmp_path: Path, columns: tuple[str, ...]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(jsonl(*({**dict.fromkeys(columns, "words"), "label": n} for n in range(3))), encoding="utf-8")
    found = make_labelled(open_source(str(path)).read("train"))
    assert [example.texts for example in found.examples] == [("words",) * len(columns)] * 3


def test_what_is_held_out_is_drawn_from_all_over_a_sorted_file() -> None:
    data = labelled.Labelled("file", "all", examples(*[0] * 50, *[1] * 50))
    train, judged = labelled.hold_out(data, 10)
    assert (len(train.examples), len(judged.examples)) == (90, 10)
    assert {example.label for example in judged.examples} == {0, 1}
    assert not {example.place for example in judged.examples} & {example.place for example in train.examples}
    assert labelled.hold_out(data, 10)[1] == judged


@pytest.mark.parametrize(
    ("labels", "names", "numbers"),
    [
        (("10001", "94105"), ("10001", "94105"), [0, 1]),
        ((200000001, 100000000), ("100000000", "200000001"), [1, 0]),
        (("01", "02"), ("01", "02"), [0, 1]),
        ((0, 3), ("0", "1", "2", "3"), [0, 3]),  # the control: a class without a row keeps its number
    ],
)
def test_numbers_far_apart_are_names(labels: tuple[object, ...], names: tuple[str, ...], numbers: list[int]) -> None:
    assert class_names(examples(*labels)) == names
    assert class_numbers(examples(*labels), names) == numbers


def test_a_number_is_not_the_place_of_another_name() -> None:
    with pytest.raises(DataError, match="label '1' is none"):
        class_numbers(examples(1), ("10001", "94105"))
    table = Table(
        "t", ("text", "label"), [{"text": "a", "label": place} for place in (0, 1, 2)], ["1", "2", "3"], ("1", "2", "3")
    )
    found = make_labelled(Part("t", "all", [table])).examples
    assert class_numbers(found, ("1", "2", "3")) == [0, 1, 2]


@pytest.mark.parametrize(("labels", "words"), [(["ok"] * 8, "all 8 rows"), (list(range(100, 200)), "as an id has")])
def test_labels_that_are_no_classes_are_refused(labels: list[object], words: str) -> None:
    with pytest.raises(DataError, match=words):
        class_names(examples(*labels))
    assert class_names(examples(*labels, *["a", "b"] * 60)) != ()  # the control


def read_labels(tmp_path: Path, *labels: object, name: str = "a.jsonl") -> list[object]:
    rows = [{"text": "words", "label": label} for label in labels]
    (tmp_path / name).write_text(
        jsonl(*rows) if name == "a.jsonl" else "text,label\n" + "".join(f'x,"{label}"\n' for label in labels)
    )
    return [example.label for example in make_labelled(open_source(str(tmp_path / name)).read("train")).examples]


@pytest.mark.parametrize("labels", [(-1, 0, 1), (-1.0, 0.0, 1.0), ("-1", "0", "1"), (0, -1, -1), (-1, -1)])
def test_rows_marked_as_unlabelled_are_refused(labels: tuple[object, ...], tmp_path: Path) -> None:
    marked = sum(float(str(label)) == -1 for label in labels)
    with pytest.raises(DataError, match=rf"line \d: label is -1, .* in {marked} of {len(labels)} rows: remove them"):
        read_labels(tmp_path, *labels)


@pytest.mark.parametrize("labels", [(-1, 1), (-2, -1, 0, 1), (-1.0, 0.5, 0.0), ("-1", "up"), (0, 1)])
def test_a_minus_one_that_is_a_value_is_kept(labels: tuple[object, ...], tmp_path: Path) -> None:
    assert len(read_labels(tmp_path, *labels)) == len(labels)


@pytest.mark.parametrize("label", ["[0, 1]", "['a', 'b']", "[0 1]", "[]"])
def test_a_list_written_as_text_is_refused(label: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 2: label is .*only one label a text"):
        read_labels(tmp_path, label, "0", name="a.csv")
    assert read_labels(tmp_path, "[neutral]", "0", name="a.csv") == ["[neutral]", "0"]  # the control


def test_one_class_has_one_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = read_labels(tmp_path, "pos", " pos", "neg ", "neg", name="a.csv")
    assert found == ["pos", "pos", "neg", "neg"]
    assert read_labels(tmp_path, "1", "1.0", "0.0", name="a.csv") == ["1", "1", "0"]
    assert read_labels(tmp_path, 1, 1.0, 0.5) == [1, 1, 0.5]
    assert class_names(examples(*found)) == ("neg", "pos")
    assert not caplog.records
    assert class_names(examples("pos", "Pos")) == ("Pos", "pos")
    assert "'Pos' and 'pos' differ in upper and lower case only" in caplog.text


def line(task: GlueTask, label: str) -> str:
    if isinstance(task.columns[0], int):
        return f"gj04\t{label}\t\tone"
    return "\t".join(label if column == task.columns[-1] else 'one "quoted' for column in task.columns)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.folder)
def test_every_task_of_glue_is_read_from_the_archives_own_files(task: GlueTask, tmp_path: Path) -> None:
    folder = tmp_path / task.folder
    folder.mkdir()
    labels = (
        ["2.5", "1.5"]
        if not task.labels
        else ["1", "0"]
        if task.labels[0] not in ("entailment",)
        else list(task.labels[:2])
    )
    header = [] if isinstance(task.columns[0], int) else ["\t".join(map(str, task.columns))]
    for name, chosen in (("train", labels), (task.dev, labels[:1])):
        lines = [*header, *(line(task, label) for label in chosen)]
        (folder / f"{name}.tsv").write_text("\ufeff" + "\n".join(lines) + "\n", encoding="utf-8")
    source = open_source(str(folder))
    train, judged = make_labelled(source.read("train")), make_labelled(source.read("held_out"))
    assert [example.label for example in train.examples] == labels
    assert len(judged.examples) == 1
    assert {len(example.texts) for example in train.examples} == {len(task.columns) - 1}
    assert (train.names, train.metrics) == (task.labels, task.metrics)
    if task.labels:
        assert set(class_numbers(train.examples, train.names)) == {0, 1}
    assert source.files_of("train") == {folder / "train.tsv"}
    assert source.files_of("held_out") == {folder / f"{task.dev}.tsv"}


def test_a_task_is_found_in_any_spelling() -> None:
    assert glue_task("SST-2") == glue_task("sst2") is not None
    assert glue_task("imdb") is None
    assert glue_on_hub("glue:SST-2")[0] == "nyu-mll/glue:sst2"
    assert glue_on_hub("nyu-mll/glue:stsb")[1] == glue_task("STS-B")
    assert glue_on_hub("org/name:cola") == ("org/name:cola", None)


def test_wrong_files_of_glue_are_told(tmp_path: Path) -> None:
    folder = tmp_path / "RTE"
    folder.mkdir()
    (folder / "train.tsv").write_text("index\tsentence1\tlabel\n0\ta\tentailment\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"dev\.tsv is missing from GLUE's RTE"):
        open_source(str(folder))
    (folder / "dev.tsv").write_text("index\tsentence1\tlabel\n", encoding="utf-8")
    with pytest.raises(DataError, match="no column 'sentence2'"):
        open_source(str(folder)).read("train")


COUNTS = {"CoLA": (8551, 1043), "SST-2": (67349, 872), "MRPC": (3667, 408), "RTE": (2490, 277), "STS-B": (5749, 1500)}


@pytest.mark.parametrize("name", COUNTS)
def test_the_real_files_hold_as_many_examples_as_glue_says(name: str, shared: Path) -> None:
    folder = shared / "data" / "glue" / name
    if not folder.is_dir():
        pytest.skip(f"no real GLUE files: {folder} is missing")
    source = open_source(str(folder))
    parts = [make_labelled(source.read(split)) for split in ("train", "held_out")]
    assert tuple(len(part.examples) for part in parts) == COUNTS[name]
