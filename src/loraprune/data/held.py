"""Rows that a caller holds in memory, checked and named as the rows of the same file would be."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import datasets

from loraprune.data.files import Table, json_table
from loraprune.errors import DataError


def table_of(name: str, rows: Sequence[Any]) -> Table:
    """Return rows as a JSON file would give them; a string is the text of a row.

    Raises:
        DataError: if a row cannot be written to such a file, or is not an object.
    """
    places = [f"item {number}" for number in range(1, len(rows) + 1)]
    plain = [
        {"text": row} if isinstance(row, str) else _plain(name, place, row)
        for row, place in zip(rows, places, strict=True)
    ]
    return json_table(name, plain, places)


def splits_of(rows: datasets.Dataset | datasets.DatasetDict) -> dict[Any, datasets.Dataset]:
    """Return the splits of a data set; one that is not split is `all`."""
    return dict(rows) if isinstance(rows, datasets.DatasetDict) else {"all": rows}


def _plain(name: str, place: str, row: object) -> object:
    """Return a row as it would come back from a JSON file."""
    try:
        return json.loads(json.dumps(row))
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(
            f"{name}, {place}: it cannot be written as JSON ({error}): give strings and dicts of them, or a Dataset"
        ) from None
