"""Turn rows of a table into documents or chats; check the columns and their values.

Knows nothing about where a table came from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from loraprune.data.files import PAIRS, Table
from loraprune.data.turns import Message, named, read_chat, read_tools, read_turns
from loraprune.errors import DataError

Format = Literal["messages", "instruction", "pair", "text"]

EXCHANGES = (("instruction", "response"), ("instruction", "output"), ("prompt", "completion"), ("prompt", "response"))
"""columns of a request and its answer: ours, those of Alpaca, of TRL, and of other tools"""
CHATS = ("messages", "conversations")
"""columns of whole chats; the second is ShareGPT's, whose turns are {from, value}"""
LEFT_OUT = {
    **dict.fromkeys(("image", "images", "video", "videos", "audio", "audios"), "only text is trained"),
    **dict.fromkeys(("chosen", "rejected", "kto_tag"), "preferences are not trained, only answers"),
    "chat_template_kwargs": "it is not passed to the chat template",
}
"""column beside chats or instructions -> why rows cannot be read without it"""

COLUMNS: tuple[tuple[Format, tuple[str, ...]], ...] = (
    *(("messages", (column,)) for column in CHATS),
    *(("instruction", columns) for columns in EXCHANGES),
    ("text", ("text",)),
    *(("pair", columns) for columns in PAIRS),
)
"""columns that each format needs, in the order of preference if a table has several"""


class Pair(NamedTuple):
    """A text to read and the text to write after it."""

    place: str
    """where it stands, as an error message gives it"""
    source: str
    target: str


class Chat(NamedTuple):
    """Turns of one conversation; an instruction with its response is a chat of two."""

    place: str
    """where it stands, as an error message gives it"""
    messages: Sequence[Message]
    tools: Sequence[Any] | None = None
    """functions that the assistant may call, as the chat template takes them"""


@dataclass(frozen=True, slots=True)
class Examples:
    """Documents, chats or pairs of one source, in order."""

    source: str
    split: str
    format: Format
    texts: Sequence[str] = ()
    chats: Sequence[Chat] = ()
    pairs: Sequence[Pair] = ()

    def __len__(self) -> int:
        return len(self.texts) + len(self.chats) + len(self.pairs)

    def take(self, start: int, stop: int, *, split: str) -> Examples:
        """Return some of the examples, as a split of another name."""
        kept = slice(start, stop)
        return replace(self, texts=self.texts[kept], chats=self.chats[kept], pairs=self.pairs[kept], split=split)


def make_examples(source: str, tables: Sequence[Table], *, split: str) -> Examples:
    """Check the columns of all tables and take the examples out of them; texts without a character are left out.

    Raises:
        DataError: if a column is missing, the tables differ in format, a value is not a string, or nothing is left.
    """
    form = find_format(tables[0])
    for table in tables[1:]:
        if (other := find_format(table)) != form:
            raise DataError(
                f"{table.name} holds {other} but {tables[0].name} holds {form}: keep one format in a folder"
            )
    if form == "text":
        examples = Examples(source, split, form, texts=[text for table in tables for text in _texts(table)])
    elif form == "pair":
        pairs = [pair for table in tables for pair in _pairs(table)]
        examples = Examples(source, split, form, pairs=pairs)
    else:
        chats = [chat for table in tables for chat in _chats(table, form)]
        examples = Examples(source, split, form, chats=chats)
    if not len(examples):
        raise DataError(f"{source}: it holds no text: give a file or folder with text")
    return examples


def find_format(table: Table) -> Format:
    """Return the first format whose columns a table has."""
    for form, needed in COLUMNS:
        if set(needed) <= set(table.columns):
            return form
    if not table.columns:
        raise DataError(f"{table.name}: it holds no rows: give a file with rows")
    found = ", ".join(table.columns) or "none"
    raise DataError(
        f"{table.name}: columns found: {found}; needed: `text`, or `instruction` and `response`, or `prompt` and `completion`, or "
        "`messages`, or `source` and `target`: rename them, or map them, as in --columns text=COLUMN"
    )


def _pairs(table: Table) -> list[Pair]:
    read, written = next(columns for columns in PAIRS if set(columns) <= set(table.columns))
    return [
        Pair(f"{table.name}, {place}", _string(table, place, row, read), _string(table, place, row, written))
        for place, row in zip(table.places, table.rows, strict=True)
    ]


def _texts(table: Table) -> list[str]:
    texts = [_string(table, place, row, "text") for place, row in zip(table.places, table.rows, strict=True)]
    return [text for text in texts if text.strip()]


def _chats(table: Table, form: Format) -> Iterator[Chat]:
    _check_left_out(table)
    read = _messages if form == "messages" else _exchange
    for place, row in zip(table.places, table.rows, strict=True):
        where = f"{table.name}, {place}"
        if form == "instruction" and str(row.get("label")).lower() in ("true", "false"):
            raise DataError(_left_out(where, "label", LEFT_OUT["kto_tag"]))
        yield Chat(where, read_chat(where, row, read(table, place, row)), read_tools(where, row))


def _check_left_out(table: Table) -> None:
    """Check that no column is given without which the rows would be other ones."""
    for column in [each for each in LEFT_OUT if each in table.columns]:
        read = [(place, row[column]) for place, row in zip(table.places, table.rows, strict=True) if column in row]
        given = [place for place, value in read if value not in (None, "", [], {})]
        if given or not read:  # what is not loaded may hold anything
            raise DataError(_left_out(", ".join([table.name, *given[:1]]), column, LEFT_OUT[column]))


def _left_out(where: str, column: str, why: str) -> str:
    return (
        f"{where}: the column {column!r} would be left out, as {why}: remove such rows or the column, or name the columns to read, "
        "as in --columns messages=messages"
    )


def _exchange(table: Table, place: str, row: Mapping[str, Any]) -> Sequence[Message]:
    asked, answered = next(columns for columns in EXCHANGES if set(columns) <= set(table.columns))
    if isinstance(row.get(asked), list) and isinstance(row.get(answered), list):
        turns = [*_unlearnt(row[asked]), *row[answered]]
        return read_turns(f"{table.name}, {place}", turns, column=answered)
    prompt = _string(table, place, row, asked)
    if asked == "instruction" and row.get("input") not in (None, ""):
        prompt = f"{prompt}\n{_string(table, place, row, 'input')}"
    answer = _string(table, place, row, answered)
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def _unlearnt(messages: Sequence[Any]) -> list[Any]:
    """Return the turns of a prompt, none of which are targets."""
    return [{**message, "weight": 0} if isinstance(message, dict) else message for message in messages]


def _messages(table: Table, place: str, row: Mapping[str, Any]) -> Sequence[Message]:
    column = next(column for column in CHATS if column in table.columns)
    return read_turns(f"{table.name}, {place}", row.get(column), column=column)


def _string(table: Table, place: str, row: Mapping[str, Any], column: str) -> str:
    value = row.get(column)
    if not isinstance(value, str):
        raise DataError(
            f"{table.name}, {place}: {column} is {named(value)}, a string is needed: correct or remove the row"
        )
    return value
