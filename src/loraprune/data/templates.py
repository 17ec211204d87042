"""Render chats as text, and find the spans that the assistant wrote.

Knows nothing about tokens, except that the tokenizer carries the chat template.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from loraprune.data.examples import Chat
from loraprune.data.texts import first_tokens
from loraprune.data.turns import Message
from loraprune.errors import DataError

MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")
# Templates of Llama 3.2 and SmolLM3 print the day: rows must not depend on when they were made.
FIXED_DATE = "{% macro strftime_now(format) %}26 Jul 2024{% endmacro %}"
STAND_IN = "\ue000stand-in\ue001"
"""begins and ends with characters of the private use area, which no other text shares"""
Render = Callable[[Sequence[Message]], str]


class Span(NamedTuple):
    """Target characters of a turn: its content, and the end of the turn."""

    start: int
    said: int
    end: int


class Rendered(NamedTuple):
    """A chat as text, and its target characters."""

    text: str
    spans: list[Span]


def renderer(tokenizer: PreTrainedTokenizerBase) -> Callable[[Chat], Rendered]:
    """Return the function that renders chats for a tokenizer: with its template, or as plain text if it has none.

    Raises:
        DataError: if the tokenizer has several templates and none is the default; the function raises it for a chat
            that the template refuses.
    """
    if tokenizer.chat_template is None:
        bos = tokenizer.bos_token if tokenizer.bos_token_id in first_tokens(tokenizer) else None
        return partial(render_plain, bos=str(bos or ""), eos=str(tokenizer.eos_token or ""))
    try:
        template = tokenizer.get_chat_template()
    except ValueError as error:
        raise DataError(f"the tokenizer's chat template cannot be used ({error}): give it a default one") from None
    return partial(_render_guarded, tokenizer=tokenizer, template=FIXED_DATE + template)


def render_plain(chat: Chat, *, bos: str, eos: str) -> Rendered:
    """Render `User: …` and `Assistant: …` a line each, with EOS after every answer.

    An answer's span starts after the colon and ends with EOS, or with its newline where there is no EOS, so that the
    model learns to stop.
    """
    if chat.tools or any(message.get("tool_calls") for message in chat.messages):
        raise DataError(
            f"{chat.place}: it has tools or tool_calls, and the tokenizer has no chat template to render them: give it one or remove them"
        )
    text, spans = bos, []
    for message in chat.messages:
        text += f"{message['role'].capitalize()}:"
        if message["role"] == "assistant":
            answer = f" {message['content']}{eos or chr(10)}"
            end = len(text) + len(answer)
            if is_learnt(message):
                spans.append(Span(len(text), end, end))
            text += answer + ("\n" if eos else "")
        else:
            text += f" {message['content']}\n"
    return Rendered(text, spans)


def is_learnt(message: Message) -> bool:
    """Return whether a turn is a target: the assistant's are, unless their `weight` is 0."""
    return bool(message["role"] == "assistant" and message.get("weight", 1))


def _render_guarded(chat: Chat, *, tokenizer: PreTrainedTokenizerBase, template: str) -> Rendered:
    try:
        return _render(chat, tokenizer, template)
    except DataError:
        raise
    except (TemplateError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise DataError(
            f"{chat.place}: the tokenizer's chat template refuses it ({error}): check the roles and their order"
        ) from None


def _render(chat: Chat, tokenizer: PreTrainedTokenizerBase, template: str) -> Rendered:
    def render(messages: Sequence[Message], *, answer: bool = False) -> str:
        text = tokenizer.apply_chat_template(
            _turns(messages),
            tools=_functions(chat),
            chat_template=template,
            tokenize=False,
            add_generation_prompt=answer,
        )
        return str(text)

    text = render(chat.messages)
    whole = all(is_learnt(message) for message in chat.messages if message["role"] == "assistant")
    spans = _marked_spans(chat, tokenizer, template) if whole and MARKED.search(template) else []
    if spans:
        return Rendered(text, spans)
    for index, message in enumerate(chat.messages):
        if is_learnt(message):
            span = find_span(chat, index, text, render=render)
            if index and "add_generation_prompt" in template:
                # What the model is asked to write may begin before the content: Qwen 3's `<think>`.
                prompt = render(chat.messages[:index], answer=True)
                span = span._replace(start=len(prompt)) if text[: span.start].startswith(prompt) else span
            spans.append(span)
    return Rendered(text, spans)


def _turns(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return turns as a template takes them, without their weights."""
    return [{key: value for key, value in turn.items() if key != "weight"} for turn in messages]


def _functions(chat: Chat) -> list[Any] | None:
    return list(chat.tools) if chat.tools else None


def _marked_spans(chat: Chat, tokenizer: PreTrainedTokenizerBase, template: str) -> list[Span]:
    """Return the characters of every token that the template marks as the assistant's."""
    encoded: Any = tokenizer.apply_chat_template(
        _turns(chat.messages),
        tools=_functions(chat),
        chat_template=template,
        return_dict=True,
        return_assistant_tokens_mask=True,
        tokenizer_kwargs={"return_offsets_mapping": True, "verbose": False},
    )
    marks = zip(encoded["offset_mapping"], encoded["assistant_masks"], strict=True)
    return [Span(start, end, end) for (start, end), marked in marks if marked]


def find_span(chat: Chat, index: int, text: str, *, render: Render) -> Span:
    """Find what a turn adds to the text of its chat: its content, and the end of the turn.

    Rendering only the first messages is not enough: templates such as Qwen 3's and Mistral's print a turn in another
    way when it is the last. So the content is replaced by a placeholder, with all other turns unchanged; the end of
    the turn (EOS, `<|im_end|>`) is what follows the placeholder both there and where the chat stops after it.

    Raises:
        DataError: if the template does not print the content exactly once.
    """
    exchanged = [*chat.messages[:index], {**chat.messages[index], "content": STAND_IN}, *chat.messages[index + 1 :]]
    around = render(exchanged).split(STAND_IN)
    if len(around) == 1 and chat.messages[index].get("tool_calls"):
        return _call_span(chat, index, text, render=render)
    if len(around) != 2:
        raise DataError(
            f"{chat.place}: the tokenizer's chat template prints message {index + 1} {len(around) - 1} times, "
            "so the assistant's words cannot be found: give one exchange a row"
        )
    before, after = around
    stopped = after if index == len(chat.messages) - 1 else render(exchanged[: index + 1]).split(STAND_IN)[-1]
    start = _shared(text, before)
    common = _shared(text[start:][::-1], after[::-1])
    closing = _shared(after, stopped) - (len(after) - common)
    said = len(text) - common
    return Span(start, said, said + max(0, closing))


def _call_span(chat: Chat, index: int, text: str, *, render: Render) -> Span:
    """Find what a turn with calls instead of content adds to the text of the turns before it.

    Raises:
        DataError: if the turns before it are rendered differently without it.
    """
    before, through = render(chat.messages[:index]), render(chat.messages[: index + 1])
    start, end = _shared(through, before), _shared(text, through)
    if not 0 < start < end:
        raise DataError(
            f"{chat.place}: the tokenizer's chat template prints the calls of message {index + 1} in a way that cannot be found: "
            "give one exchange a row"
        )
    return Span(start, end, end)


def _shared(text: str, other: str) -> int:
    """Return how many characters two texts have in common at the start."""
    if text.startswith(other):  # nearly always, and much faster than looking
        return len(other)
    pairs = enumerate(zip(text, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(text), len(other)))
