"""Read one data file; report anything wrong with it in one line.

Knows nothing about what the columns mean. Text and JSON are read with Python's own library rather than with `datasets`:
an error then has its line, and `datasets` 5.2 fails on sound JSON lines where a key first comes up after 10 MB.
"""

from __future__ import annotations

import glob
import gzip
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import datasets
from datasets.utils import logging as datasets_logging

from loraprune.data.cells import TAB, read_cells
from loraprune.errors import DataError, nearest
from loraprune.runtime.hub import COMPRESSED, data_suffix

PAIRS = (("source", "target"), ("document", "summary"), ("article", "highlights"))
"""columns of sources and targets: those of translation, and of data sets of summaries"""
LABELLED = (
    "text_pair", "label", "sentence", "sentence1", "sentence2", "premise", "hypothesis", "question", "question1", "question2",
)  # fmt: skip
"""columns of labelled texts, see `loraprune.data.labelled`"""
USED_COLUMNS = (
    *("messages", "conversations", "system", "system_prompt", "history", "tools", "functions"),
    *("instruction", "input", "response", "output", "prompt", "completion", "text"),
    *(column for pair in PAIRS for column in pair), *LABELLED,
)  # fmt: skip
"""the others are not loaded: they may be large, or of types that change from row to row"""


Columns: TypeAlias = Mapping[str, str]
"""role, such as `text` -> the user's column; empty where columns have our names"""
OWN_NAMES: Columns = MappingProxyType({})


class Table(NamedTuple):
    """Rows of a file, each with the place that an error message gives for it."""

    name: str
    columns: tuple[str, ...]
    rows: Sequence[Mapping[str, Any]]
    places: Sequence[str]
    """such as `line 3`, one for each row"""
    names: tuple[str, ...] = ()
    """classes in the order of the numbers in a column `label`, where the file says"""


def read_table(path: Path, columns: Columns = OWN_NAMES) -> Table:
    """Read a .jsonl, .json, .csv, .tsv or .parquet file; all but the last may be compressed. Columns keep the user's names.

    Raises:
        DataError: if the file cannot be read, is empty, or does not match its suffix.
    """
    readers: dict[str, Callable[[Path], Table]] = {
        ".jsonl": _read_jsonl, ".json": _read_json, ".csv": partial(_read_csv, columns=columns),
        ".tsv": partial(_read_csv, columns=columns, delimiter=TAB), ".parquet": partial(_read_parquet, columns=columns),
    }  # fmt: skip
    return readers[data_suffix(path.name)](path)


def with_roles(table: Table, columns: Columns) -> Table:
    """Return a table of only the columns that `columns` names, named by their roles; all columns unchanged if it is empty.

    Raises:
        DataError: if there is no such column.
    """
    for role, column in columns.items():
        if column not in table.columns:
            found = ", ".join(table.columns) or "none"
            raise DataError(
                f"{table.name}: no column {column!r} for --columns {role}={column}{nearest(column, table.columns)}: columns found: {found}"
            )
    if not columns:
        return table
    rows = [{role: row[column] for role, column in columns.items() if column in row} for row in table.rows]
    return table._replace(columns=tuple(columns), rows=rows)


def read_text(path: Path) -> str:
    """Read a UTF-8 text file, with line ends as newlines.

    Raises:
        DataError: if it is missing, empty, binary or of another encoding.
    """
    data = _read_bytes(path)
    if b"\0" in data:
        raise DataError(f"{path}: a binary file (it holds zero bytes): give UTF-8 text")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}, line {line}: not UTF-8 text (byte 0x{data[error.start]:02x}): convert the file to UTF-8"
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _read_bytes(path: Path, count: int = -1) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(count)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}): check the path and its permissions") from None
    if not data:
        raise DataError(f"{path}: the file is empty: give one that holds text")
    return data if count >= 0 else _decompressed(path, data)


def _decompressed(path: Path, data: bytes) -> bytes:
    """Return the decompressed content of a .gz or .zst file; other content is returned unchanged."""
    suffix = path.suffix.lower()
    if suffix not in COMPRESSED:
        return data
    if suffix == ".zst" and find_spec("zstandard") is None:
        raise DataError(
            f"{path}: zstandard is not installed, which reads .zst files: pip install zstandard, or decompress the file"
        )
    try:
        if suffix == ".gz":
            return gzip.decompress(data)
        with import_module("zstandard").ZstdDecompressor().stream_reader(data, read_across_frames=True) as reader:
            whole: bytes = reader.read()
            return whole
    except Exception as error:  # zstandard has an error of its own
        raise DataError(f"{path}: not a complete {suffix} file ({reason(error)}): compress it again") from None


def _read_jsonl(path: Path) -> Table:
    rows, places = [], []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            rows.append(_parse_line(path, number, line))
            places.append(f"line {number}")
    return json_table(str(path), rows, places)


def _parse_line(path: Path, number: int, line: str) -> object:
    try:
        return json.loads(line, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        what = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        raise DataError(f"{path}, line {number}: malformed JSON ({what}): correct or remove the line") from None


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON; one with two values for a key is malformed, of which Python would keep the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"two values for {next(key for key in keys if keys.count(key) > 1)!r}")
    return found


def _read_json(path: Path) -> Table:
    try:
        content = json.loads(read_text(path), object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # one object a line under the wrong suffix
            return _read_jsonl(path)
        raise DataError(f"{path}, line {error.lineno}: malformed JSON ({error.msg}): correct the file") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: malformed JSON ({error}): correct the file") from None
    rows = content if isinstance(content, list) else [content]
    return json_table(str(path), rows, [f"item {number}" for number in range(1, len(rows) + 1)])


def json_table(name: str, rows: Sequence[Any], places: Sequence[str]) -> Table:
    """Check that all rows of JSON are objects of texts that a tokenizer reads.

    Raises:
        DataError: for the first that is not.
    """
    for row, place in zip(rows, places, strict=True):
        if not isinstance(row, dict):
            raise DataError(f'{name}, {place}: a {type(row).__name__} where an object is needed: write {{"text": …}}')
        if half := _half_character(row):
            raise DataError(
                f"{name}, {place}: it holds {half}, half of a character, which no tokenizer reads: correct or remove the row"
            )
    columns = dict.fromkeys(column for row in rows for column in row)  # a dict keeps their order
    return Table(name, tuple(columns), rows, places)


def _half_character(value: object) -> str | None:
    """Return a surrogate without its other half in the texts of a JSON value, as a cut in the middle of an emoji leaves it."""
    if isinstance(value, str):
        if value.isascii():
            return None
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            return f"\\u{ord(value[error.start]):04x}"
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next((half for part in parts if (half := _half_character(part))), None)


def _read_csv(path: Path, *, columns: Columns, delimiter: str = ",") -> Table:
    rows = read_cells(str(path), read_text(path), delimiter)
    header = [name.strip() for name in rows[0].values] if rows else []
    used = _used(header, columns)
    if twice := next((column for column in used if header.count(column) > 1), None):
        raise DataError(f"{path}, line {rows[0].line}: two columns are called {twice!r}: rename or remove one")
    places = [(column, header.index(column)) for column in used]
    values = [{column: row.values[place] for column, place in places} for row in rows[1:]]
    return Table(str(path), tuple(header), values, [f"line {row.line}" for row in rows[1:]])


def _read_parquet(path: Path, *, columns: Columns) -> Table:
    _read_bytes(path, count=1)
    with loaded(path, "parquet") as table:
        return as_table(str(path), table, columns)


def _used(found: Sequence[str], columns: Columns) -> list[str]:
    """Return the columns of those found that are loaded, each once."""
    return [column for column in dict.fromkeys(columns.values() or USED_COLUMNS) if column in found]


def as_table(name: str, table: datasets.Dataset, columns: Columns) -> Table:
    """Return the used columns of a `datasets` table as Python objects."""
    used = _used(table.column_names, columns)
    # Arrow gives every object the keys of all others, with None where it lacks them.
    rows = [
        {column: _without_none(value) for column, value in row.items()}
        for row in (table.select_columns(used).to_list() if used else [])
    ]
    names = getattr(table.features.get(columns.get("label", "label")), "names", None) or ()
    places = [f"row {number}" for number in range(1, len(rows) + 1)]
    return Table(name, tuple(table.column_names), rows, places, tuple(names))


def _without_none(value: Any) -> Any:
    """Return a value of a table without the keys that have none, at any depth."""
    if isinstance(value, dict):
        return {key: _without_none(part) for key, part in value.items() if part is not None}
    return [_without_none(part) for part in value] if isinstance(value, list) else value


@contextmanager
def loaded(path: Path, builder: str, **options: Any) -> Iterator[datasets.Dataset]:
    """Read a file through `datasets`, silently and without leaving a copy in the user's cache."""
    bars, verbosity = not datasets.are_progress_bars_disabled(), datasets_logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets_logging.set_verbosity(datasets_logging.CRITICAL)
    try:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:
            files = glob.escape(str(path))  # `datasets` takes a name with brackets for a pattern
            try:
                table = datasets.load_dataset(builder, data_files=files, split="train", cache_dir=cache, **options)
            except Exception as error:  # pandas, pyarrow and datasets share no base class
                raise DataError(
                    f"{path}: not a readable {path.suffix} file ({reason(error)}): correct it or write it again"
                ) from None
            yield table
    finally:
        datasets_logging.set_verbosity(verbosity)
        if bars:
            datasets.enable_progress_bars()


def reason(error: BaseException) -> str:
    """Return the first line of the first cause of an error."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
