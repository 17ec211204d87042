"""GLUE's nine tasks by name: the columns of the archive's files, the labels' names, and the metrics of the paper.

Source: Wang et al., GLUE (arXiv 1804.07461) for the metrics; file layouts are those of the archive at gluebenchmark.com.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loraprune.data.files import Table, read_text
from loraprune.errors import DataError

HUB = "nyu-mll/glue"


@dataclass(frozen=True, slots=True)
class GlueTask:
    """One task: the columns of its files, and its metrics."""

    folder: str
    """as the archive names it; without hyphen and in small letters, as the hub does"""
    columns: tuple[str | int, ...]
    """text, perhaps its pair, and label: names of the header, or numbers where there is none"""
    labels: tuple[str, ...]
    """names in the order of the hub's numbers; empty for a regression"""
    metrics: tuple[str, ...] = ("accuracy",)
    """the first is the main metric"""
    dev: str = "dev"
    """name of the file for evaluation; the test files have no labels"""


ENTAILED = ("entailment", "not_entailment")
TASKS = (
    GlueTask("CoLA", (3, 1), ("unacceptable", "acceptable"), ("matthews_correlation", "accuracy")),
    GlueTask("SST-2", ("sentence", "label"), ("negative", "positive")),
    GlueTask("MRPC", ("#1 String", "#2 String", "Quality"), ("not_equivalent", "equivalent"), ("f1", "accuracy")),
    GlueTask("QQP", ("question1", "question2", "is_duplicate"), ("not_duplicate", "duplicate"), ("f1", "accuracy")),
    GlueTask("STS-B", ("sentence1", "sentence2", "score"), (), ("pearson", "spearman")),
    GlueTask("MNLI", ("sentence1", "sentence2", "gold_label"), ("entailment", "neutral", "contradiction"), dev="dev_matched"),
    GlueTask("QNLI", ("question", "sentence", "label"), ENTAILED),
    GlueTask("RTE", ("sentence1", "sentence2", "label"), ENTAILED),
    GlueTask("WNLI", ("sentence1", "sentence2", "label"), ("not_entailment", "entailment")),
)  # fmt: skip
BY_NAME = {task.folder.replace("-", "").lower(): task for task in TASKS}


def glue_task(name: str) -> GlueTask | None:
    """Return the task of a folder's or a hub configuration's name, in any spelling."""
    return BY_NAME.get(name.replace("-", "").lower())


def glue_on_hub(name: str) -> tuple[str, GlueTask | None]:
    """Return what a name such as glue:sst2 is called on the hub, and the task; any other name is returned unchanged."""
    identifier, _, configuration = name.partition(":")
    task = glue_task(configuration) if identifier in ("glue", HUB) else None
    return (f"{HUB}:{task.folder.replace('-', '').lower()}", task) if task else (name, None)


def glue_files(folder: Path) -> dict[str, Path] | None:
    """Return the training and the evaluation files of a folder named as in GLUE's archive, or None for any other."""
    task = glue_task(folder.name)
    if task is None or not folder.is_dir() or not any(folder.glob("*.tsv")):
        return None
    files = {"train": folder / "train.tsv", "held_out": folder / f"{task.dev}.tsv"}
    for file in files.values():
        if not file.is_file():
            raise DataError(f"{folder}: {file.name} is missing from GLUE's {task.folder}: get the archive's own files")
    return files


def read_glue(file: Path, task: GlueTask) -> Table:
    """Read one file of a task as a table of `text`, `text_pair` if it has pairs, and `label`; lines with other columns are skipped.

    Raises:
        DataError: if it has other columns than the task.
    """
    lines = [line.split("\t") for line in read_text(file).split("\n")]
    header: Sequence[str] = [] if isinstance(task.columns[0], int) else lines[0]
    missing = [str(column) for column in task.columns if isinstance(column, str) and column not in header]
    if missing:
        raise DataError(f"{file}: no column {missing[0]!r} in it: GLUE's own file of {task.folder} is needed")
    places = [column if isinstance(column, int) else header.index(column) for column in task.columns]
    names = ("text", "text_pair", "label") if len(places) == 3 else ("text", "label")
    rows, numbers = [], []
    for number, line in enumerate(lines, start=1):
        if (header and number == 1) or len(line) <= max(places):  # GLUE's QQP has lines that lack columns
            continue
        rows.append(dict(zip(names, (line[place] for place in places), strict=True)))
        numbers.append(f"line {number}")
    return Table(str(file), names, rows, numbers, task.labels)
