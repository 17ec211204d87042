"""Tables of text: no row is swallowed by a quote, and a file that can be read in two ways is refused with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from loraprune.data.files import Table, read_table
from loraprune.errors import DataError


def table(path: Path, text: str, name: str = "a.csv") -> Table:
    (path / name).write_text(text)
    return read_table(path / name)


def cells(found: Table) -> list[tuple[str, ...]]:
    return [tuple(row.values()) for row in found.rows]


PLAIN = [
    'text\tlabel\n"good film\t1\nbad film\t0\nok" film\t1\n"fine" one\t0\n',
    'text\tlabel\n"good film\t1\nbad film\t0\n',
    'text\tlabel\n"good film\t1\nbad film\t0\nok film"\t1\n',  # well quoted, if rows could be inside a cell
    'label\ttext\n1\t"good film\n0\tbad film"\n',
]


@pytest.mark.parametrize("text", PLAIN)
def test_stray_quotes_of_a_table_with_tabs_are_characters(text: str, tmp_path: Path) -> None:
    header, *lines = [tuple(line.split("\t")) for line in text.splitlines()]
    found = table(tmp_path, text, "a.tsv")
    assert found.columns == header
    assert [tuple(row[name] for name in header) for row in found.rows] == lines
    assert found.places[-1] == f"line {len(lines) + 1}"


@pytest.mark.parametrize(("name", "tab"), [("a.tsv", "\t"), ("a.csv", ",")])
def test_cells_that_are_well_quoted_lose_their_quotes(name: str, tab: str, tmp_path: Path) -> None:
    text = f'text{tab}label\n"a ""b"" c"{tab}"1"\n\n"two\nlines"{tab}0\nsay "hi"{tab}1\n'
    found = table(tmp_path, text, name)
    assert cells(found) == [('a "b" c', "1"), ("two\nlines", "0"), ('say "hi"', "1")]
    assert list(found.places) == ["line 2", "line 4", "line 6"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('text\n"a \\"b\\", c"\nd\n', r'line 2: a quoted cell .* twice, as in "a ""b"""'),
        ('text,label\na,1\n"b,0\nc,1\n', "line 3: a quoted cell begins here and is not closed"),
        ('text,label\n"a" x,1\n', "line 2: a quoted cell"),
        ('text,label\na, "b, c"\n', "line 2: 3 fields, and the header has 2: .*remove spaces before quotes"),
        ("text,label\na,1\nb\n", "line 3: 1 fields, and the header has 2"),
        ("text,text,label\na,b,1\n", "line 1: two columns are called 'text'"),
    ],
)
def test_a_table_that_would_be_read_wrongly_is_refused(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"a\.csv, {words}"):
        table(tmp_path, text)
    with pytest.raises(DataError, match=r"a\.tsv, line 2: 3 fields"):
        table(tmp_path, "text\tlabel\na\tb\t1\n", "a.tsv")


def test_columns_that_are_not_read_may_share_a_name(tmp_path: Path) -> None:
    found = table(tmp_path, "id,,id, text,\n1,,2,a,\n")  # spreadsheets write columns without a name
    assert (cells(found), found.columns) == ([("a",)], ("id", "", "id", "text", ""))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_an_object_with_two_values_of_a_key_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"malformed JSON \(two values for 'text'\)"):
        table(tmp_path, '{"text": "a", "text": "b"}\n', name)
    assert len(table(tmp_path, '{"text": "a", "label": "b"}\n', name).rows) == 1
