"""Chats as other tools write them: what is in columns beside them is read or refused, and calls have one form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from loraprune.data import read_examples
from loraprune.data.examples import Chat
from loraprune.data.templates import is_learnt
from loraprune.errors import DataError
from tests.samples import jsonl

WEATHER = {"name": "weather", "arguments": {"city": "Bern"}}
CALL = {"type": "function", "function": WEATHER}
TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def chat(folder: Path, row: dict[str, Any]) -> Chat:
    (folder / "a.jsonl").write_text(jsonl(row))
    return read_examples(str(folder / "a.jsonl"), "train").chats[0]


def said(found: Chat) -> list[tuple[str, str]]:
    return [(turn["role"], turn["content"]) for turn in found.messages]


def sharegpt(*turns: tuple[str, str]) -> dict[str, Any]:
    return {"conversations": [{"from": who, "value": what} for who, what in turns]}


PLAIN = [("user", "a"), ("assistant", "b")]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"system": "S", **sharegpt(("human", "a"), ("gpt", "b"))}, [("system", "S"), *PLAIN]),
        ({"system_prompt": "S", "prompt": "a", "response": "b"}, [("system", "S"), *PLAIN]),
        ({"system": "S", "messages": [{"role": "system", "content": "S"}, *TURNS]}, [("system", "S"), *PLAIN]),
        ({"instruction": "a", "output": "b", "system": " ", "history": []}, PLAIN),
        (
            {"instruction": "a", "input": "", "output": "b", "system": "S", "history": [["q", "r"]]},
            [("system", "S"), ("user", "q"), ("assistant", "r"), *PLAIN],
        ),
        (
            {"history": '[["q", "r"]]', "messages": [{"role": "system", "content": "S"}, *TURNS]},
            [("system", "S"), ("user", "q"), ("assistant", "r"), *PLAIN],
        ),
        ({"messages": json.dumps(TURNS)}, PLAIN),
        ({"messages": [{"role": "Human", "value": "a"}, {"role": "GPT", "content": "b"}]}, PLAIN),
    ],
)
def test_system_and_history_are_turns(row: dict[str, Any], expected: list[tuple[str, str]], tmp_path: Path) -> None:
    found = chat(tmp_path, row)
    assert said(found) == expected
    assert all(map(is_learnt, (turn for turn in found.messages if turn["role"] == "assistant")))


@pytest.mark.parametrize(
    "turns",
    [
        sharegpt(("human", "a"), ("function_call", json.dumps(WEATHER)), ("observation", "1"), ("gpt", "b")),
        sharegpt(("user", "a"), ("tool_call", json.dumps([WEATHER])), ("tool_response", "1"), ("gpt", "b")),
        {"messages": [TURNS[0], {"role": "assistant", "content": None, "tool_calls": [WEATHER]},
                      {"role": "tool", "content": "1"}, TURNS[1]]},
        {"messages": [TURNS[0], {"role": "assistant", "content": None, "function_call": {**WEATHER, "arguments": '{"city": "Bern"}'}},
                      {"role": "function", "name": "weather", "content": "1"}, TURNS[1]]},
    ],
    ids=["function_call", "tool_call", "bare", "openai-older"],
)  # fmt: skip
def test_calls_have_the_form_that_templates_take(turns: dict[str, Any], tmp_path: Path) -> None:
    found = chat(tmp_path, turns)
    assert said(found) == [("user", "a"), ("assistant", ""), ("tool", "1"), ("assistant", "b")]
    assert found.messages[1]["tool_calls"] == [CALL]


@pytest.mark.parametrize("column", ["tools", "functions"])
@pytest.mark.parametrize("form", [list, json.dumps])
def test_functions_are_tools(form: Any, column: str, tmp_path: Path) -> None:
    tool = {"name": "weather", "parameters": {"type": "object"}}
    wrapped = {"type": "function", "function": tool}
    assert chat(tmp_path, {column: form([tool]), "messages": TURNS}).tools == [wrapped]
    assert chat(tmp_path, {column: form([wrapped]), "messages": TURNS}).tools == [wrapped]
    assert chat(tmp_path, {column: form([]), "messages": TURNS}).tools is None  # the control


def test_a_table_of_arrow_gives_no_keys_of_other_rows(tmp_path: Path) -> None:
    calls = [{"type": "function", "function": {"name": "f", "arguments": {key: "1"}}} for key in ("a", "b")]
    rows = [{"messages": [TURNS[0], {"role": "assistant", "content": None, "tool_calls": [call]}]} for call in calls]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
    found = read_examples(str(tmp_path / "a.parquet"), "train").chats
    assert [each.messages[1]["tool_calls"][0]["function"]["arguments"] for each in found] == [{"a": "1"}, {"b": "1"}]


@pytest.mark.parametrize("key", ["weight", "train", "loss"])
def test_a_turn_that_is_marked_so_is_not_learnt(key: str, tmp_path: Path) -> None:
    for value in (False, 0, True, 1):
        found = chat(tmp_path, {"messages": [*TURNS, TURNS[0], {**TURNS[1], key: value}]}).messages
        assert [is_learnt(turn) for turn in found] == [False, True, False, bool(value)]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"system": "T", "messages": [{"role": "system", "content": "S"}, *TURNS]}, "system is str 'T', and the chat has another"),
        ({"system": ["S"], "messages": TURNS}, "system is list .*a string is needed"),
        ({"history": [["q"]], "messages": TURNS}, r"history is list .*a list of \[question, answer\]"),
        ({"history": "none", "messages": TURNS}, "history is str 'none'"),
        (sharegpt(("human", "a"), ("function_call", "weather(Bern)")), r"message 2 calls str 'weather\(Bern\)'"),
        ({"messages": [*TURNS, {"role": "assistant", "tool_calls": [{"id": "1"}]}]}, "message 3 calls dict"),
        ({"messages": [TURNS[0], {**TURNS[1], "train": "no"}]}, "train of message 2 is str 'no'"),
        ({"messages": [TURNS[0], {**TURNS[1], "train_detail": [{"begin_offset": 0}]}]}, "message 2 has train_detail"),
        ({"tools": [CALL], "functions": [WEATHER], "messages": TURNS}, "tools and functions: keep one"),
        ({"tools": "{not json", "messages": TURNS}, "tools is str"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "message 1 has a part of type 'image_url'"),
        ({"images": ["a.png"], "messages": TURNS}, "line 1: the column 'images' would be left out, as only text"),
        ({"chosen": {"from": "gpt", "value": "c"}, "rejected": {}, **sharegpt(("human", "a"), ("gpt", "b"))}, "'chosen' .*preferences"),
        ({"kto_tag": False, "instruction": "a", "output": "b"}, "'kto_tag' would be left out, as preferences"),
        ({"label": False, "prompt": "a", "completion": "b"}, "line 1: the column 'label' would be left out, as preferences"),
    ],
)  # fmt: skip
def test_what_would_be_left_out_is_refused(row: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=words):
        chat(tmp_path, row)


def test_empty_columns_and_columns_that_are_not_named_are_no_matter(tmp_path: Path) -> None:
    row = {"images": [], "kto_tag": None, "label": "news", "prompt": "a", "completion": "b"}
    assert said(chat(tmp_path, row)) == PLAIN
    (tmp_path / "b.jsonl").write_text(jsonl({"images": ["a.png"], "messages": TURNS}))
    found = read_examples(str(tmp_path / "b.jsonl"), "train", {"messages": "messages"})
    assert said(found.chats[0]) == PLAIN
    datasets.Dataset.from_list([{"images": ["a.png"], "prompt": "a", "completion": "b"}]).to_parquet(
        tmp_path / "c.parquet"
    )
    with pytest.raises(DataError, match=r"c\.parquet: the column 'images' would be left out"):
        read_examples(str(tmp_path / "c.parquet"), "train")
