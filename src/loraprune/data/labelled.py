"""Turn rows of a table into texts or pairs of texts with labels: classes by name, or numbers.

Knows nothing about tokens.
"""

from __future__ import annotations

import logging
import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from loraprune.data.files import Table
from loraprune.data.sources import Part
from loraprune.errors import DataError

TEXTS: tuple[tuple[str, ...], ...] = (
    ("text", "text_pair"),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("text",),
    ("sentence",),
)
"""columns that hold a text, or a text and its pair, in the order of preference where a table has several"""
LABEL = "label"
UNLABELLED = "-1"
WHOLE = re.compile(r"^(-?\d+)\.0+$")
"""a whole number, as tables write it that had a gap in the column"""
LIST = re.compile(r"\[\s*(?:['\"\d].*)?\]")
"""the text of a list of numbers or words"""
GAPS = 32
"""a number below this, or below twice the number of classes, numbers a class; larger ones, such as zip codes, are only names"""
MANY_CLASSES = 50
"""more classes than this, and more than half as many as rows, are not classes"""


logger = logging.getLogger(__name__)


class Example(NamedTuple):
    """A text, or a pair of texts, and its label as written in the file."""

    place: str
    texts: tuple[str, ...]
    label: object


@dataclass(frozen=True, slots=True)
class Labelled:
    """Labelled texts of one source."""

    source: str
    split: str
    examples: Sequence[Example]
    names: tuple[str, ...] = ()
    """classes in the order of their numbers, if the source names them"""
    metrics: tuple[str, ...] = ()
    """the metrics that the source names, if any"""

    def take(self, places: Sequence[int], *, split: str) -> Labelled:
        """Return some of the examples, as a split of another name."""
        return replace(self, examples=[self.examples[place] for place in places], split=split)


def make_labelled(part: Part) -> Labelled:
    """Check the columns of all tables and take the examples out of them.

    Raises:
        DataError: if a column is missing, or a value is not a text or not a label.
    """
    examples = [
        Example(f"{table.name}, {place}", _texts(table, place, row, columns), _label(table, place, row))
        for table in part.tables
        for columns in [_columns(table)]
        for place, row in zip(table.places, table.rows, strict=True)
    ]
    if not examples:
        raise DataError(f"{part.source}: it holds no rows: give a file with rows")
    _check_unlabelled(examples, part.tables[0].names)
    return Labelled(part.source, part.split, examples, part.tables[0].names, part.metrics)


def _columns(table: Table) -> tuple[str, ...]:
    found = next((columns for columns in TEXTS if set(columns) <= set(table.columns)), None)
    if found is None or LABEL not in table.columns:
        seen = ", ".join(table.columns) or "none"
        raise DataError(
            f"{table.name}: columns found: {seen}; needed: `text` and `label`, and `text_pair` for pairs: rename them, or say which are "
            "meant, as in --columns text=COLUMN,label=COLUMN"
        )
    return found


def _texts(table: Table, place: str, row: Mapping[str, Any], columns: Sequence[str]) -> tuple[str, ...]:
    for column in columns:
        if not isinstance(row.get(column), str):
            raise DataError(
                f"{table.name}, {place}: {column} is {row.get(column)!r}, a string is needed: correct the row"
            )
    return tuple(row[column] for column in columns)


def _label(table: Table, place: str, row: Mapping[str, Any]) -> object:
    label = row.get(LABEL)
    if isinstance(label, str):
        label = WHOLE.sub(r"\1", label.strip())
    elif isinstance(label, float) and label.is_integer():
        label = int(label)
    if isinstance(label, list) or (isinstance(label, str) and LIST.fullmatch(label)):
        raise DataError(
            f"{table.name}, {place}: label is {label!r}: only one label a text is trained; give a name or a number"
        )
    fine = isinstance(label, (int, str)) or (isinstance(label, float) and math.isfinite(label))
    if not fine or label == "":
        raise DataError(
            f"{table.name}, {place}: label is {'missing' if label in (None, '') else repr(label)}: give a name or a number"
        )
    if table.names and isinstance(label, int) and 0 <= label < len(table.names):
        return table.names[label]  # numbers may be names too, those of other classes
    return label


def _check_unlabelled(examples: Sequence[Example], names: Sequence[str]) -> None:
    """Check that no label is -1 beside numbers of classes: the test sets of GLUE and others mark rows without a label so."""
    labels = {str(example.label) for example in examples}
    marked = [example for example in examples if str(example.label) == UNLABELLED]
    others = labels - {UNLABELLED}
    # Without a class 0, as in -1 and 1, the sign is the class.
    if marked and (names or not others or ("0" in others and all(label.isdecimal() for label in others))):
        raise DataError(
            f"{marked[0].place}: label is -1, as rows without a label have, in {len(marked)} of {len(examples)} rows: remove them, or, if "
            "it is a class, name the classes in words"
        )


def hold_out(data: Labelled, share: int) -> tuple[Labelled, Labelled]:
    """Draw one example in `share` for evaluation, always the same ones: files are often sorted by label.

    Raises:
        DataError: if there are fewer than two.
    """
    count = len(data.examples)
    if count < 2:
        raise DataError(f"{data.source}: {count} rows: at least two are needed, one to train on and one to evaluate on")
    places = sorted(random.Random(0).sample(range(count), max(1, count // share)))
    others = sorted(set(range(count)) - set(places))
    return data.take(others, split="train"), data.take(places, split="held_out")


def numbers(examples: Sequence[Example]) -> list[float]:
    """Return the labels of a regression.

    Raises:
        DataError: if one is not a number.
    """
    found = []
    for example in examples:
        try:
            value = float(str(example.label))
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise DataError(
                f"{example.place}: label {example.label!r} is not a number like the others: correct the row"
            )
        found.append(value)
    return found


def is_regression(examples: Sequence[Example]) -> bool:
    """Return whether labels are for regression: all are numbers, and one is not whole."""
    try:
        values = [float(str(example.label)) for example in examples]
    except ValueError:
        return False
    return not all(value.is_integer() for value in values)


def class_names(examples: Sequence[Example]) -> tuple[str, ...]:
    """Return the names of all classes, numbers in their order and words in the alphabet's.

    Raises:
        DataError: if all rows have the same label, or nearly every row has a different one.
    """
    names = {str(example.label) for example in examples}
    if len(names) == 1:
        raise DataError(
            f"{examples[0].place}: label {min(names)!r} is that of all {len(examples)} rows: at least two classes are needed"
        )
    if len(names) > max(MANY_CLASSES, len(examples) // 2):
        raise DataError(
            f"{examples[0].place}: `label` has {len(names)} different values in {len(examples)} rows, as an id has: rename the column "
            "that holds classes to `label`"
        )
    spellings: dict[str, str] = {}
    for name in sorted(names):
        if (other := spellings.setdefault(name.casefold(), name)) != name:
            logger.warning("labels %r and %r differ in upper and lower case only, and are two classes", other, name)
    if not all(name.isdecimal() and str(int(name)) == name for name in names):
        return tuple(sorted(names))
    numbers = sorted(map(int, names))
    if numbers[-1] < max(GAPS, 2 * len(numbers)):
        numbers = list(range(numbers[-1] + 1))  # a class that no row has keeps its number
    return tuple(map(str, numbers))


def class_numbers(examples: Sequence[Example], names: Sequence[str]) -> list[int]:
    """Return the number of every label: its index among the names, or the label itself if it is a number.

    Raises:
        DataError: if a label is neither.
    """
    places = {name: place for place, name in enumerate(names)}
    are_numbers = all(name.isdecimal() for name in names)
    found = []
    for example in examples:
        label = str(example.label)
        # The number of a class stands for its name, but not where names are numbers themselves.
        place = places.get(label, int(label) if label.isdecimal() and not are_numbers else -1)
        if not 0 <= place < len(names):
            raise DataError(
                f"{example.place}: label {label!r} is none of the model's or the training data's, {', '.join(names)[:200]}: "
                "correct it, or rename the labels"
            )
        found.append(place)
    return found
