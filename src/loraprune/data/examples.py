"""Turn rows of a table into documents or chats; check the columns and their values.

Knows nothing about where a table came from.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from loraprune.data.files import PAIRS, Table
from loraprune.errors import DataError

Format = Literal["messages", "instruction", "pair", "text"]
Message = Mapping[str, Any]

EXCHANGES = (("instruction", "response"), ("instruction", "output"), ("prompt", "completion"), ("prompt", "response"))
"""columns of a request and its answer: ours, those of Alpaca, of TRL, and of other tools"""
CHATS = ("messages", "conversations")
"""columns of whole chats; the second is ShareGPT's, whose turns are {from, value}"""
SPEAKERS = {
    "human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant", "observation": "tool",
    "function": "tool",
}  # fmt: skip
"""speaker in ShareGPT's chats -> role; other names are roles already"""

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
        chat = _messages if form == "messages" else _exchange
        chats = [
            Chat(f"{table.name}, {place}", chat(table, place, row), _tools(table, place, row))
            for table in tables
            for place, row in zip(table.places, table.rows, strict=True)
        ]
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


def _exchange(table: Table, place: str, row: Mapping[str, Any]) -> Sequence[Message]:
    asked, answered = next(columns for columns in EXCHANGES if set(columns) <= set(table.columns))
    if isinstance(row.get(asked), list) and isinstance(row.get(answered), list):
        return _spoken(table, place, [*_unlearnt(row[asked]), *row[answered]], column=answered)
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
    return _spoken(table, place, row.get(column), column=column)


def _spoken(table: Table, place: str, messages: object, *, column: str) -> Sequence[Message]:
    """Return the turns of a chat with their roles, contents and weights checked."""
    where = f"{table.name}, {place}"
    if not isinstance(messages, list) or not messages or not all(isinstance(message, dict) for message in messages):
        raise DataError(
            f"{where}: {column} is {_name(messages)}, a list of {{role, content}} is needed: correct the row"
        )
    turns = [_turn(where, number, message) for number, message in enumerate(messages, start=1)]
    if not any(turn["role"] == "assistant" for turn in turns):
        raise DataError(f"{where}: no message has the role assistant, so there are no targets: remove the row")
    return turns


def _turn(where: str, number: int, message: Message) -> Message:
    # `datasets` gives every message the keys of all others, with None where a message lacks them.
    turn = {key: value for key, value in message.items() if value is not None}
    if "role" not in turn and "from" in turn:
        speaker = turn.pop("from")
        turn["role"] = SPEAKERS.get(speaker, speaker) if isinstance(speaker, str) else speaker
        turn["content"] = turn.pop("value", None)
    if turn.get("tool_calls") and turn.get("content") is None:
        turn["content"] = ""  # OpenAI's API writes null beside a call
    if isinstance(parts := turn.get("content"), list) and parts and all(_is_text(part) for part in parts):
        turn["content"] = "".join(part["text"] for part in parts)
    for key in ("role", "content"):
        if not isinstance(turn.get(key), str):
            found = _name(turn.get(key))
            raise DataError(f"{where}: {key} of message {number} is {found}, a string is needed: correct the row")
    if turn.get("weight", 1) not in (0, 1):
        raise DataError(
            f"{where}: weight of message {number} is {_name(turn['weight'])}: 0 or 1 is needed: correct the row"
        )
    return turn


def _is_text(part: object) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _tools(table: Table, place: str, row: Mapping[str, Any]) -> Sequence[Any] | None:
    """Return the functions that a chat may call: a list, or the text of one in JSON, as tables of strings hold it."""
    tools = row.get("tools")
    if isinstance(tools, str) and tools.strip():
        with contextlib.suppress(ValueError):
            tools = json.loads(tools)
    if tools in (None, "", []):
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise DataError(
            f"{table.name}, {place}: tools is {_name(tools)}, a list of functions is needed: correct the row"
        )
    return tools


def _string(table: Table, place: str, row: Mapping[str, Any], column: str) -> str:
    value = row.get(column)
    if not isinstance(value, str):
        raise DataError(
            f"{table.name}, {place}: {column} is {_name(value)}, a string is needed: correct or remove the row"
        )
    return value


def _name(value: object) -> str:
    if value is None:
        return "missing or null"
    return "empty" if value in ([], {}) else f"{type(value).__name__} {str(value)[:40]!r}"
