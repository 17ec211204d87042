"""Chats with tools and weights, and the columns of other tools: what reaches the model, and what of it is learnt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loraprune.data import TokenRows, load_data, load_rows
from loraprune.errors import DataError
from tests.data.test_chats import CHATML, MARKED, spoken, tokenizer_with
from tests.samples import documents, joined, jsonl

TOOLS = "{% if tools %}Tools: {{ tools | tojson }}\n{% endif %}"
CALLS = TOOLS + (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ m.tool_calls | tojson if m.tool_calls else '' }}</s>\n{% endfor %}"
)
CALLS_ALONE = TOOLS + (  # as Llama 3.1: a call is printed in place of the content
    "{% for m in messages %}{{ m.role }}: {% if m.tool_calls %}{{ m.tool_calls | tojson }}{% else %}{{ m.content }}{% endif %}</s>\n"
    "{% endfor %}"
)
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Bern"}}}


def chat(content: object = "", **last: object) -> dict[str, Any]:
    messages = [
        {"role": "user", "content": "How warm is it?"}, {"role": "assistant", "content": content, "tool_calls": [CALL]},
        {"role": "tool", "content": "12 C"}, {"role": "assistant", "content": "It is 12 C.", **last},
    ]  # fmt: skip
    return {"messages": messages, "tools": [CALL]}


def rows(folder: Path, row: dict[str, Any], template: str | None) -> tuple[str, list[str]]:
    """Return the text that one row becomes, and what of it is learnt."""
    (folder / "a.jsonl").write_text(jsonl(row))
    tokenizer = tokenizer_with(template)
    found: TokenRows = load_rows(str(folder / "a.jsonl"), tokenizer, length=2000)
    return tokenizer.decode(found.rows[0].input_ids), spoken(tokenizer, found.rows[0])


@pytest.mark.parametrize("template", [CALLS, CALLS_ALONE], ids=["beside", "in place"])
@pytest.mark.parametrize("content", ["", None])
@pytest.mark.parametrize("written", [False, True], ids=["list", "text"])
def test_tools_reach_the_template_and_calls_are_learnt(
    written: bool, content: str | None, template: str, tmp_path: Path
) -> None:
    row = chat(content)
    if written:
        row["tools"] = json.dumps(row["tools"])
    text, learnt = rows(tmp_path, row, template)
    assert text.startswith("Tools: [{")
    assert "None" not in text
    assert ["weather" in each for each in learnt] == [True, False]
    assert learnt[1].startswith("It is 12 C.")
    assert "Tools" not in rows(tmp_path, {**row, "tools": []}, template)[0]  # the control


@pytest.mark.parametrize("template", [CALLS, CHATML, MARKED], ids=["calls", "chatml", "marked"])
def test_a_turn_of_weight_zero_is_read_and_not_learnt(template: str, tmp_path: Path) -> None:
    turns = [("user", "a"), ("assistant", "wrong"), ("user", "b"), ("assistant", "right")]
    messages = [{"role": role, "content": content} for role, content in turns]
    messages[1]["weight"] = 0  # type: ignore[assignment]
    text, learnt = rows(tmp_path, {"messages": messages}, template)
    assert "wrong" in text
    assert len(learnt) == 1
    assert "right" in learnt[0]
    del messages[1]["weight"]
    assert len(rows(tmp_path, {"messages": messages}, template)[1]) == 2  # the control


@pytest.mark.parametrize(
    ("row", "template", "words"),
    [
        (chat(), None, "no chat template"),
        (chat(weight=2), CALLS, "weight of message 4 is int '2'"),
        ({**chat(), "tools": "get_weather"}, CALLS, "tools is str"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": None}]}, CHATML, "content of message 2"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, CHATML, "content of message 1"),
    ],
)  # fmt: skip
def test_what_cannot_be_rendered_is_named(
    row: dict[str, Any], template: str | None, words: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=words):
        rows(tmp_path, row, template)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "hi", "response": "ho"},
        {"instruction": "hi", "input": "", "output": "ho", "text": "a template of its own"},
        {"prompt": "hi", "completion": "ho"},
        {"prompt": [user("hi")], "completion": [assistant("ho")]},
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]},
        {"messages": [user("hi"), {"role": "assistant", "content": [{"type": "text", "text": "ho"}]}]},
    ],
    ids=["ours", "alpaca", "trl", "trl-chats", "sharegpt", "parts"],
)
def test_the_columns_of_other_tools_give_the_same_rows(row: dict[str, Any], tmp_path: Path) -> None:
    assert rows(tmp_path, row, CHATML) == (
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nho<|im_end|>\n", ["ho<|im_end|>\n"]
    )  # fmt: skip


def test_an_answer_in_a_prompt_is_not_learnt(tmp_path: Path) -> None:
    row = {"prompt": [user("a"), assistant("old"), user("b")], "completion": [assistant("new")]}
    assert rows(tmp_path, row, CHATML)[1] == ["new<|im_end|>\n"]


def test_a_system_turn_of_sharegpt_and_its_tools_keep_their_roles(tmp_path: Path) -> None:
    said = [("system", "be kind"), ("human", "a"), ("gpt", "b"), ("observation", "c"), ("gpt", "d")]
    text, _ = rows(tmp_path, {"conversations": [{"from": who, "value": what} for who, what in said]}, CHATML)
    assert [turn.split("\n")[0] for turn in text.split("<|im_start|>")[1:]] == [
        "system",
        "user",
        "assistant",
        "tool",
        "assistant",
    ]


def test_data_are_held_out_by_chat(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(jsonl(*({"prompt": text, "completion": "yes"} for text in documents(20))))
    data = load_data(str(tmp_path / "a.jsonl"), tokenizer_with(CHATML), length=200)
    assert len(joined(data.train)) > 5 * len(joined(data.held_out)) > 0
