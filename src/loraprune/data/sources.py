"""Reading texts, instructions and chats from files, folders, the hub, or Python's own library.

Knows nothing about tokens.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import datasets
from datasets import Dataset, DatasetDict, load_dataset

from loraprune.demo.stdlib import stdlib_texts
from loraprune.errors import DataError, nearest

Form = Literal["messages", "instruction", "text"]
Message = Mapping[str, str]
Example = str | Sequence[Message]
"""a text, or the messages of a chat; an instruction with its response is a chat of two messages"""

BUILDERS = {".txt": "text", ".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
STDLIB = "stdlib"
HELD_OUT_NAMES = ("validation", "valid", "dev", "test")
NEEDED = "`messages`, `instruction` and `response`, or `text`"


@dataclass(frozen=True, slots=True)
class Source:
    """Examples of one form, and whether instructions go through the tokenizer's chat template."""

    name: str
    form: Form
    examples: tuple[Example, ...]
    split: str

    def take(self, start: int, stop: int | None, split: str) -> Source:
        """Return some of the examples as a split of another name."""
        return replace(self, examples=self.examples[start:stop], split=split)


def read_source(name: str) -> tuple[Source, Source | None]:
    """Read a source: its training examples, and its held-out ones where the source itself has them.

    Raises:
        DataError: for a source that is missing, empty, malformed, or has none of the columns needed.
    """
    if name == STDLIB:
        train = Source(name, "text", tuple(stdlib_texts(held_out=False)), "train")
        return train, Source(name, "text", tuple(stdlib_texts(held_out=True)), "held-out modules")
    path = Path(name)
    if path.exists():
        return _from_files(name, _files(path)), None
    if path.suffix.lower() in BUILDERS or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise DataError(f"--data {name}: no such file or folder; check the path")
    return _from_hub(name)


def _files(path: Path) -> list[Path]:
    """Return the data files of a path, all of one kind."""
    if path.is_file():
        if path.suffix.lower() not in BUILDERS:
            raise DataError(
                f"--data {path}: {path.suffix or 'no ending'!r} is not known{nearest(path.suffix, BUILDERS)}: "
                f"name a {', '.join(BUILDERS)} file"
            )
        return [path]
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in BUILDERS)
    kinds = sorted({file.suffix.lower() for file in files})
    if not files:
        raise DataError(f"--data {path}: the folder holds no {', '.join(BUILDERS)} file")
    if len(kinds) > 1:
        raise DataError(
            f"--data {path}: the folder holds {' and '.join(kinds)} files; name one of them, or keep one kind"
        )
    return files


def _from_files(name: str, files: Sequence[Path]) -> Source:
    empty = next((file for file in files if not file.stat().st_size), None)
    if empty:
        raise DataError(f"--data {empty}: the file is empty")
    builder = BUILDERS[files[0].suffix.lower()]
    if builder == "text":
        return _checked(Source(name, "text", tuple(_read_text(file) for file in files), "train"))
    datasets.disable_progress_bars()
    try:
        table = load_dataset(builder, data_files=[str(file) for file in files], split="train")
        return _from_table(name, table, "train")
    except DataError:
        raise
    except Exception as error:  # the readers of four formats raise a dozen types; all mean that the file is bad
        raise DataError(
            f"--data {name}: cannot be read as {builder} ({_reason(error)}); mend or convert the file"
        ) from None


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"--data {file}: byte {error.start} is not UTF-8; convert the file to UTF-8 text") from None


def _from_hub(name: str) -> tuple[Source, Source | None]:
    if os.environ.get("HF_HUB_OFFLINE") == "1" or os.environ.get("HF_DATASETS_OFFLINE") == "1":
        raise DataError(f"--data {name}: no such file or folder here, and the hub is switched off (HF_HUB_OFFLINE)")
    path, _, configuration = name.partition(":")
    datasets.disable_progress_bars()
    try:
        loaded = load_dataset(path, configuration or None)
    except Exception as error:  # whatever the network or the hub answers
        raise DataError(
            f"--data {name}: no such file or folder here, and the hub does not give it ({_reason(error)}); check the name"
        ) from None
    assert isinstance(loaded, DatasetDict)
    names = [str(split) for split in loaded]
    train = "train" if "train" in names else names[0]
    held_out = next((split for split in HELD_OUT_NAMES if split in names and split != train), None)
    other = _from_table(name, loaded[held_out], held_out) if held_out else None
    return _from_table(name, loaded[train], train), other


def _from_table(name: str, table: Dataset, split: str) -> Source:
    columns = set(table.column_names)
    if "messages" in columns:
        chats = [_chat(name, row, value) for row, value in enumerate(table["messages"])]
        return _checked(Source(name, "messages", tuple(chats), split))
    if {"instruction", "response"} <= columns:
        inputs = table["input"] if "input" in columns else [None] * len(table)
        triples = zip(table["instruction"], inputs, table["response"], strict=True)
        pairs = [_pair(name, row, *triple) for row, triple in enumerate(triples)]
        return _checked(Source(name, "instruction", tuple(pairs), split))
    if "text" in columns:
        return _checked(
            Source(name, "text", tuple(_string(name, i, "text", t) for i, t in enumerate(table["text"])), split)
        )
    lone = next((word for word in ("instruction", "response") if word in columns), None)
    hint = f"; beside {lone!r} the other of instruction and response is missing" if lone else ""
    raise DataError(f"--data {name}: columns {sorted(columns)} are there, {NEEDED} is needed{hint}; rename a column")


def _string(name: str, row: int, column: str, value: object) -> str:
    if not isinstance(value, str):
        raise DataError(
            f"--data {name}: row {row + 1}, column {column!r} is {type(value).__name__}, a string is needed"
        )
    return value


def _pair(name: str, row: int, instruction: Any, extra: Any, response: Any) -> tuple[Message, Message]:
    prompt = _string(name, row, "instruction", instruction)
    if extra:
        prompt += "\n" + _string(name, row, "input", extra)
    answer = _string(name, row, "response", response)
    return {"role": "user", "content": prompt}, {"role": "assistant", "content": answer}


def _chat(name: str, row: int, value: Any) -> tuple[Message, ...]:
    turns = value if isinstance(value, Sequence) and not isinstance(value, str) else ()
    if not turns or not all(
        isinstance(t, Mapping) and isinstance(t.get("content"), str) and t.get("role") for t in turns
    ):
        raise DataError(
            f"--data {name}: row {row + 1}, column 'messages' must be a list of {{role, content}} with text contents"
        )
    return tuple({"role": str(turn["role"]), "content": turn["content"]} for turn in turns)


def _checked(source: Source) -> Source:
    if not any(example.strip() if isinstance(example, str) else example for example in source.examples):
        raise DataError(
            f"--data {source.name}: there is no text in it ({len(source.examples)} rows); name another file"
        )
    return source


def _reason(error: BaseException) -> str:
    """Return the innermost cause of a reader's error, in one short line."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__ or error
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:160] if lines else type(error).__name__
