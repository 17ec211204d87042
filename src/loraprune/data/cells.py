"""Split the text of a .csv or .tsv file into rows of cells.

Knows nothing about what the columns mean.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from loraprune.errors import DataError

TAB = "\t"
LONGEST = 2**31 - 1
"""characters of a cell: Python's own limit is 131,072"""


class Cells(NamedTuple):
    """One row: the header, or values in its order."""

    line: int
    """the line of the file on which it begins, from 1"""
    values: list[str]


def read_cells(name: str, text: str, delimiter: str) -> list[Cells]:
    """Return the header and all rows, each as long as the header; blank lines are left out.

    A .tsv file whose quotes do not enclose whole cells is read without quoting: in many of them a quote is a character as any other.

    Raises:
        DataError: if a row has more or fewer cells than the header, or a quoted cell is not closed at its end.
    """
    with _long_cells():
        rows, wrong = _quoted(text, delimiter)
    if delimiter == TAB and (wrong or any(TAB in value and "\n" in value for row in rows for value in row.values)):
        rows = [Cells(number, line.split(TAB)) for number, line in enumerate(text.split("\n"), start=1)]
    elif wrong:
        raise DataError(
            f'{name}, line {wrong}: a quoted cell begins here and is not closed at its end: write a quote inside it twice, as in "a ""b"""'
        )
    rows = [row for row in rows if len(row.values) > 1 or "".join(row.values).strip()]
    for row in rows:
        if len(row.values) != len(rows[0].values):
            raise DataError(
                f"{name}, line {row.line}: {len(row.values)} fields, and the header has {len(rows[0].values)}: quote texts that contain "
                f"{delimiter!r} or a newline, and remove spaces before quotes"
            )
    return rows


def _quoted(text: str, delimiter: str) -> tuple[list[Cells], int]:
    """Return rows, and the line of the first that is not well quoted, else 0."""
    found: list[Cells] = []
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    line = 1
    try:
        for values in rows:
            found.append(Cells(line, values))
            line = rows.line_num + 1
    except csv.Error:
        return found, line
    return found, 0


@contextmanager
def _long_cells() -> Iterator[None]:
    before = csv.field_size_limit(LONGEST)
    try:
        yield
    finally:
        csv.field_size_limit(before)
