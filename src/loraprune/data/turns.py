"""Read chats in the forms that other tools write: turns of {role, content}, tools, and what is in columns beside them.

Knows nothing about tables or tokens.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from loraprune.errors import DataError

Message = Mapping[str, Any]

SPEAKERS = {
    "human": "user", "prompter": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "ai": "assistant",
    "model": "assistant", "observation": "tool", "function": "tool", "tool_response": "tool",
}  # fmt: skip
"""speaker in chats of ShareGPT and others -> role; other names are roles already"""
CALLERS = ("function_call", "tool_call")
"""speakers whose words are a call in JSON"""
LEARNT = ("weight", "train", "loss")
"""keys of a turn that say whether it is a target: of OpenAI and Mistral, of Axolotl, of ms-swift"""
SYSTEM = ("system", "system_prompt")
"""columns of what the system says first"""
TOOLS = ("tools", "functions")
"""columns of the functions that may be called; the second is OpenAI's older one"""


def read_chat(where: str, row: Mapping[str, Any], messages: Sequence[Message]) -> list[Message]:
    """Return the turns of a row in order: what the columns `system` and `history` hold, and then its checked messages.

    Raises:
        DataError: if such a column is malformed, or the row has two system prompts.
    """
    history = parsed(row.get("history")) or []
    pairs = isinstance(history, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in history)
    if not pairs or not all(isinstance(said, str) for pair in history for said in pair):
        raise DataError(
            f"{where}: history is {named(history)}, a list of [question, answer] is needed: correct the row, or name the "
            "columns to read by --columns"
        )
    earlier = [
        {"role": role, "content": said}
        for pair in history
        for role, said in zip(("user", "assistant"), pair, strict=True)
    ]
    system = [message for message in messages[:1] if message["role"] == "system"]
    for column in SYSTEM:
        prompt = row.get(column)
        if prompt is None or (isinstance(prompt, str) and not prompt.strip()):
            continue
        if not isinstance(prompt, str) or (system and system[0]["content"] != prompt):
            why = "and the chat has another system prompt" if isinstance(prompt, str) else "a string is needed"
            raise DataError(f"{where}: {column} is {named(prompt)}, {why}: correct the row")
        system = [{"role": "system", "content": prompt}]
    return [*system, *earlier, *(messages[1:] if messages[0]["role"] == "system" else messages)]


def read_turns(where: str, messages: object, *, column: str) -> list[Message]:
    """Return the turns in a column with their roles, contents, calls and weights checked.

    Raises:
        DataError: if it is not a list of turns, or the assistant has none.
    """
    messages = parsed(messages)
    if not isinstance(messages, list) or not messages or not all(isinstance(message, dict) for message in messages):
        raise DataError(
            f"{where}: {column} is {named(messages)}, a list of {{role, content}} is needed: correct the row"
        )
    turns = [_turn(f"message {number}", where, message) for number, message in enumerate(messages, start=1)]
    if not any(turn["role"] == "assistant" for turn in turns):
        raise DataError(f"{where}: no message has the role assistant, so there are no targets: remove the row")
    return turns


def _turn(which: str, where: str, message: Message) -> Message:
    # `datasets` gives every message the keys of all others, with None where a message lacks them.
    turn = {key: value for key, value in message.items() if value is not None}
    for key, theirs in (("role", "from"), ("content", "value")):
        if key not in turn and theirs in turn:
            turn[key] = turn.pop(theirs)
    if isinstance(turn.get("role"), str):
        speaker = turn["role"].strip().lower()
        turn["role"] = SPEAKERS.get(speaker, speaker)
    if turn.get("role") in CALLERS:
        words = parsed(turn.pop("content", None))
        turn |= {"role": "assistant", "tool_calls": words if isinstance(words, list) else [words]}
    if "function_call" in turn:  # OpenAI's older form of one call
        turn["tool_calls"] = turn.pop("function_call")
    if calls := turn.pop("tool_calls", None):
        turn["tool_calls"] = _calls(which, where, calls)
        turn.setdefault("content", "")  # OpenAI's API writes null beside a call
    if isinstance(parts := turn.get("content"), list) and parts:
        turn["content"] = "".join(_part(which, where, part) for part in parts)
    for key in ("role", "content"):
        if not isinstance(turn.get(key), str):
            raise DataError(f"{where}: {key} of {which} is {named(turn.get(key))}, a string is needed: correct the row")
    return _weighted(which, where, turn)


def _weighted(which: str, where: str, turn: dict[str, Any]) -> Message:
    """Return a turn with the weight 0 or 1 if one of the keys of other tools says it."""
    given = {key: turn.pop(key) for key in LEARNT if key in turn}
    for key, value in given.items():
        if value not in (0, 1):
            raise DataError(f"{where}: {key} of {which} is {named(value)}: 0 or 1 is needed: correct the row")
    if "train_detail" in turn:
        raise DataError(
            f"{where}: {which} has train_detail, and only whole turns are left out: write `train` or `weight` instead"
        )
    return {**turn, "weight": int(all(given.values()))} if given else turn


def _part(which: str, where: str, part: object) -> str:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = f"a part of type {part['type']!r}" if isinstance(part, dict) and part.get("type") else named(part)
    raise DataError(
        f"{where}: content of {which} has {kind}, and only parts of type 'text' with a text are read: remove it"
    )


def _calls(which: str, where: str, calls: object) -> list[Message]:
    """Return calls as chat templates take them: {type, function: {name, arguments}}, arguments being an object."""
    found: list[Message] = []
    calls = parsed(calls)
    for call in calls if isinstance(calls, list) else [calls]:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise DataError(
                f'{where}: {which} calls {named(call)}, and {{"name": …, "arguments": {{…}}}} is needed: correct the row'
            )
        arguments = parsed(function.get("arguments")) or {}
        outer: Mapping[str, Any] = call if isinstance(call, dict) and function is not call else {}
        found.append({"type": "function", **outer, "function": {**function, "arguments": arguments}})
    return found


def read_tools(where: str, row: Mapping[str, Any]) -> Sequence[Any] | None:
    """Return the functions that a chat may call, as chat templates take them; a column may hold their text in JSON.

    Raises:
        DataError: if they are not a list of functions, or are in two columns.
    """
    given = {column: tools for column in TOOLS if (tools := parsed(row.get(column))) not in (None, "", [])}
    if len(given) > 1:
        raise DataError(f"{where}: it has {' and '.join(given)}: keep one of them")
    for column, tools in given.items():
        functions = [parsed(tool) for tool in tools] if isinstance(tools, list) else []
        if not functions or not all(isinstance(tool, dict) for tool in functions):
            raise DataError(f"{where}: {column} is {named(tools)}, a list of functions is needed: correct the row")
        bare = [isinstance(tool.get("name"), str) and "function" not in tool for tool in functions]
        return [
            {"type": "function", "function": tool} if is_bare else tool
            for tool, is_bare in zip(functions, bare, strict=True)
        ]
    return None


def parsed(value: object) -> Any:
    """Return what a text in JSON says, as tables of strings hold lists; any other value is returned unchanged."""
    if isinstance(value, str) and value.strip()[:1] in ("[", "{"):
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(value)
    return value


def named(value: object) -> str:
    """Return a value as an error message gives it."""
    if value is None:
        return "missing or null"
    return "empty" if value in ([], {}) else f"{type(value).__name__} {str(value)[:40]!r}"
