"""Resolve a name given as data: a file, a folder, Python's standard library, or a data set of the hub.

Knows nothing about tokens. Nothing is read before a split is asked for, except from the hub.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import datasets
from huggingface_hub import HfApi

from loraprune.data.files import OWN_NAMES, Columns, Table, as_table, read_table, read_text, reason, with_roles
from loraprune.data.glue import GlueTask, glue_files, glue_on_hub, glue_task, read_glue
from loraprune.data.held import splits_of, table_of
from loraprune.data.stdlib import stdlib_texts
from loraprune.errors import DataError, nearest
from loraprune.runtime.held import held
from loraprune.runtime.hub import COMPRESSED, STDLIB, SUFFIXES, data_problem, data_suffix, matching

HELD_OUT_SPLITS = ("validation", "validation_matched", "valid", "val", "dev", "test")
SPLIT_NAME = rf"(train|{'|'.join(HELD_OUT_SPLITS)})"
SHARD, VARIANT = r"([-_]?\d.*)?", r"([-_].*)?"
"""what may follow the name of a split in a file's name: a number, or a word if every file of a folder is named for a split"""
LAST = rf".+[-_.]{SPLIT_NAME}"
"""a file's name with a split at its end"""
SAVED = ("dataset_dict.json", "state.json")
"""one of these is in every folder of `save_to_disk`"""
HUB_SECONDS = 10


class Part(NamedTuple):
    """Tables of one split of a source."""

    source: str
    split: str
    tables: Sequence[Table]
    metrics: tuple[str, ...] = ()
    """the metrics that the source names, if any"""


@dataclass(frozen=True, slots=True)
class Source:
    """The data of a name: either its split `all`, or its splits `train` and `held_out`."""

    splits: Mapping[str, Callable[[], Part]]
    files: Mapping[str, frozenset[Path]] = field(default_factory=dict)
    """split -> the files it is read from"""
    columns: Columns = field(default_factory=dict)

    def read(self, split: str) -> Part:
        """Return `train` or `held_out`, or everything if the source has no splits.

        Raises:
            DataError: if its files are malformed, or lack a column that is named.
        """
        part = (self.splits.get(split) or self.splits["all"])()
        return part._replace(tables=[with_roles(table, self.columns) for table in part.tables])

    def files_of(self, split: str) -> frozenset[Path]:
        """Return the files that `read` reads for a split."""
        return self.files.get(split) or self.files.get("all", frozenset())


def open_source(name: str, columns: Columns = OWN_NAMES) -> Source:
    """Resolve a name; `columns` selects and names the columns.

    Raises:
        DataError: if it leads nowhere.
    """
    return replace(_find(name, columns), columns=columns)


def _find(name: str, columns: Columns) -> Source:
    if name in held().data:
        return _held(name, held().data[name], columns)
    if name == STDLIB:
        return Source({"train": partial(_read_stdlib, "train"), "held_out": partial(_read_stdlib, "held_out")})
    path = Path(os.path.expanduser(name))
    if name and os.path.exists(path):  # unlike Path.exists, no error for a name that is too long
        glue = glue_files(path)
        if glue:
            splits = {split: partial(_read_glue, name, split, file) for split, file in glue.items()}
            return Source(splits, {split: frozenset({file.resolve()}) for split, file in glue.items()})
        if is_saved(path):
            return _saved(name, path, columns)
        return _from_files(name, data_files(path), path, columns)
    if problem := data_problem(name):
        raise DataError(problem)
    if found := [data_file(Path(file)) for file in matching(str(path))]:
        return _from_files(name, one_type(found, path), path, columns)
    return _open_hub(name, columns)


def _from_files(name: str, files: Sequence[Path], path: Path, columns: Columns) -> Source:
    parts = split_files(files, path)
    splits = {part: partial(_read_files, name, split, some, columns) for part, (split, some) in parts.items()}
    return Source(splits, {part: frozenset(map(Path.resolve, some)) for part, (_, some) in parts.items()})


def _held(name: str, rows: Any, columns: Columns) -> Source:
    if isinstance(rows, list):
        return Source({"all": lambda: Part(name, "all", [table_of(name, rows)])})
    parts = split_tables(name, splits_of(rows)).items()
    return Source({part: partial(_read_hub, name, split, table, None, columns) for part, (split, table) in parts})


def data_file(path: Path) -> Path:
    """Return a file whose type is read.

    Raises:
        DataError: for any other.
    """
    if data_suffix(path.name) not in SUFFIXES:
        hint = nearest(path.suffix, SUFFIXES)
        raise DataError(
            f"{path}: files of type {path.suffix or 'none'!r} are not read{hint}: give one of {', '.join(SUFFIXES)}"
        )
    return path


def data_files(path: Path) -> list[Path]:
    """Return the data files at a path in sorted order: the file itself, or all files of a folder.

    Raises:
        DataError: if there is none, or a folder holds anything but data files of one type; hidden files do not count.
    """
    known = ", ".join(SUFFIXES)
    if not path.is_dir():
        return [data_file(path)]
    try:
        entries = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}): check its permissions") from None
    if not entries:
        raise DataError(f"{path}: the folder is empty: give one that holds files of type {known}")
    other = [entry.name for entry in entries if entry.is_dir() or data_suffix(entry.name) not in SUFFIXES]
    if other:
        raise DataError(
            f"{path}: the folder holds {other[0]!r}, but only {known} files are read: move it out, or name a file"
        )
    return one_type(entries, path)


def one_type(files: Sequence[Path], path: Path) -> list[Path]:
    """Return the files of a folder or a pattern, all of one type, and none of them twice.

    Raises:
        DataError: if they are of several types, or one is there both compressed and not.
    """
    types = sorted({data_suffix(file.name) for file in files})
    if len(types) > 1:
        raise DataError(f"{path}: it holds {' and '.join(types)} files: keep those of one type, or name a file")
    plain: dict[Path, Path] = {}
    for file in files:
        other = plain.setdefault(file.with_suffix("") if file.suffix.lower() in COMPRESSED else file, file)
        if other is not file:
            raise DataError(
                f"{path}: {other.name} and {file.name} are the same file by their names: remove one, or name a file"
            )
    return list(files)


def is_saved(path: Path) -> bool:
    """Return whether `save_to_disk` of `datasets` wrote a folder."""
    return any((path / name).is_file() for name in SAVED)


def load_saved(path: Path) -> dict[str, tuple[str, datasets.Dataset]]:
    """Load a folder that `save_to_disk` wrote; the splits are those of `load_hub`.

    Raises:
        DataError: if it cannot be read, or has no training split.
    """
    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:  # pyarrow and datasets share no base class
        raise DataError(f"{path}: not a complete folder of save_to_disk ({reason(error)}): save it again") from None
    return split_tables(str(path), loaded if isinstance(loaded, datasets.DatasetDict) else {"all": loaded})


def _saved(name: str, path: Path, columns: Columns) -> Source:
    parts = load_saved(path).items()
    return Source({part: partial(_read_hub, name, split, table, None, columns) for part, (split, table) in parts})


def split_files(files: Sequence[Path], path: Path) -> dict[str, tuple[str, list[Path]]]:
    """Return files of a folder or a pattern as `all`, or as `train` and `held_out` if their names say so, each with the split's name.

    Names are those of the hub's data sets: train.jsonl, validation.jsonl, test-00000-of-00002.parquet; or all of them end with a
    split, as in reviews_train.csv and reviews_test.csv; or their folders are called train and test.

    Raises:
        DataError: if only some files are named for splits, or none is named for training.
    """
    found = _by_split(files, SPLIT_NAME + VARIANT)
    if "" in found:
        at_the_end = _by_split(files, LAST, _without_suffixes)
        found = _by_split(files, SPLIT_NAME + SHARD) if "" in at_the_end else at_the_end
    if list(found) == [""]:
        found = _by_split(files, SPLIT_NAME, lambda file: file.parent.name)
    if len(found) == 1:
        return {"all": ("all", list(files))}
    if "" in found and len(found) > 1:
        named_one = next(split for split in found if split)
        raise DataError(
            f"{path}: {found[named_one][0]} is named for a split and {found[''][0]} is not: name one file, or only the files of one purpose"
        )
    held_out = next((split for split in HELD_OUT_SPLITS if split in found), "train")
    if "train" not in found:
        raise DataError(
            f"{path}: its files are named for {' and '.join(found)}, none for train: name the training file"
        )
    return {"train": ("train", found["train"]), "held_out": (held_out, found[held_out])}


def _first_part(file: Path) -> str:
    return file.name.split(".")[0]


def _without_suffixes(file: Path) -> str:
    while file.suffix.lower() in (*SUFFIXES, *COMPRESSED):
        file = file.with_suffix("")
    return file.name


def _by_split(
    files: Sequence[Path], pattern: str, name_of: Callable[[Path], str] = _first_part
) -> dict[str, list[Path]]:
    """Return split -> files whose names match a pattern; files named for no split have the empty name."""
    found: dict[str, list[Path]] = {}
    for file in files:
        named = re.fullmatch(pattern, name_of(file).lower())
        found.setdefault(named[1] if named else "", []).append(file)
    return found


def _read_files(name: str, split: str, files: Sequence[Path], columns: Columns) -> Part:
    if data_suffix(files[0].name) == ".txt":
        rows = [{"text": read_text(file)} for file in files]
        return Part(name, split, [Table(name, ("text",), rows, [str(file) for file in files])])
    return Part(name, split, [read_table(file, columns) for file in files])


def _read_glue(name: str, split: str, file: Path) -> Part:
    task = glue_task(file.parent.name)
    assert task is not None
    return Part(name, split, [read_glue(file, task)], task.metrics)


def _read_stdlib(split: str) -> Part:
    rows = [{"text": text} for text in stdlib_texts(held_out=split == "held_out")]
    return Part(STDLIB, split, [Table(STDLIB, ("text",), rows, [f"module {place}" for place in range(len(rows))])])


def load_hub(name: str) -> dict[str, tuple[str, datasets.Dataset]]:
    """Load a data set of the hub: its only split as `all`, or those for `train` and `held_out`, with their own names.

    Raises:
        DataError: if it cannot be loaded, or has no training split.
    """
    identifier, _, configuration = name.partition(":")
    offline = datasets.config.HF_HUB_OFFLINE or datasets.config.HF_DATASETS_OFFLINE
    try:
        if not offline:
            # Says at once what `load_dataset` says only after five attempts.
            HfApi().dataset_info(identifier, timeout=HUB_SECONDS)
        loaded = datasets.load_dataset(identifier, configuration or None)
    except Exception as error:  # the hub, its client and every file format have errors of their own
        why = "the hub is switched off by HF_HUB_OFFLINE" if offline else reason(error)
        raise DataError(
            f"{name!r}: no such file or folder, and no data set of the hub could be loaded ({why}): check the name"
        ) from None
    return split_tables(name, loaded)


def split_tables(name: str, loaded: Mapping[Any, datasets.Dataset]) -> dict[str, tuple[str, datasets.Dataset]]:
    """Return the only split as `all`, or those for `train` and `held_out`, with their own names."""
    splits = {str(split): (str(split), table) for split, table in loaded.items()}
    if len(splits) == 1:
        return {"all": next(iter(splits.values()))}
    if "train" not in splits:
        raise DataError(
            f"{name!r}: none of its splits {', '.join(splits)} is called train: save one as a file and name that"
        )
    held_out = next((split for split in HELD_OUT_SPLITS if split in splits), None)
    return {"train": splits["train"], "held_out": splits[held_out]} if held_out else {"all": splits["train"]}


def _open_hub(name: str, columns: Columns) -> Source:
    identifier, glue = glue_on_hub(name)
    parts = load_hub(identifier).items()
    return Source({part: partial(_read_hub, name, split, table, glue, columns) for part, (split, table) in parts})


def _read_hub(name: str, split: str, table: datasets.Dataset, glue: GlueTask | None, columns: Columns) -> Part:
    return Part(name, split, [as_table(f"{name}, split {split}", table, columns)], glue.metrics if glue else ())


def columns_of(name: str, columns: Columns = OWN_NAMES) -> tuple[str, ...]:
    """Return the columns of a source's rows, or the roles of the selected columns.

    Raises:
        DataError: if it leads nowhere, or its files are malformed.
    """
    with naming("--data"):
        return open_source(name, columns).read("train").tables[0].columns


@contextmanager
def naming(option: str) -> Iterator[None]:
    """Add to an error the option that named the source."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{option} {error}") from None
