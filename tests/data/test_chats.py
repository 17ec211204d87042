"""Chats: only what the assistant says is a target, whatever the template, and it stays one when a chat is cut."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from loraprune.data import Row, TokenRows, load_rows
from loraprune.data.chats import encode_chats, pack, shorten
from loraprune.data.examples import Chat, Examples
from loraprune.data.rows import NO_TARGET
from loraprune.errors import DataError
from tests.samples import byte_tokenizer

TURN = "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
HEADER = "{{ '<|im_start|>assistant\n' }}"
ASK = "{% if add_generation_prompt %}" + HEADER + "{% endif %}"

CHATML = "{% for m in messages %}" + TURN + "{% endfor %}" + ASK
# As Qwen 3: the last answer is printed with an empty thought, earlier ones without.
THINKING = (
    "{% for m in messages %}{% if m.role == 'assistant' and loop.last %}"
    + HEADER
    + "{{ '<think>\n\n</think>\n\n' + m.content + '<|im_end|>\n' }}{% else %}"
    + TURN
    + "{% endif %}{% endfor %}"
    + ASK
)
# As Mistral: the system's words stand in the last question, and nothing asks for an answer.
LATE_SYSTEM = (
    "{% set rest = messages[1:] if messages[0].role == 'system' else messages %}"
    "{% for m in rest %}{% if m.role == 'user' %}[INST]"
    "{% if loop.last and messages[0].role == 'system' %}{{ messages[0].content + ' ' }}{% endif %}"
    "{{ m.content }}[/INST]{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}"
)
# As Gemma: contents are trimmed, roles renamed and checked.
STRICT = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{{ '<turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content | trim + '<end>\n' }}{% endfor %}"
)
# As Phi 3: what ends the chat and what starts the next turn begin with the same two characters.
ALIKE = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
    "{% if not add_generation_prompt %}{{ '<|endoftext|>' }}{% else %}{{ '<|assistant|>\n' }}{% endif %}"
)
MARKED = (
    "{% for m in messages %}{{ m.role + ': ' }}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content + '!' }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}{{ '\n' }}{% endfor %}"
)
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|end|>", "<|endoftext|>", "<|user|>", "<|assistant|>", "<turn>", "<end>"]

DIALOGUE = [
    ("user", "question"),
    ("assistant", " first answer "),
    ("user", "and then?"),
    ("assistant", "second answer"),
]


def tokenizer_with(template: str | None, **options: bool) -> PreTrainedTokenizerFast:
    tokenizer = byte_tokenizer(**options)
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL})
    tokenizer.chat_template = template
    return tokenizer


def encode(tokenizer: PreTrainedTokenizerFast, *chats: list[tuple[str, str]], length: int = 500) -> TokenRows:
    messages = [[{"role": role, "content": content} for role, content in chat] for chat in chats]
    numbered = [Chat(f"chat {number}", turns) for number, turns in enumerate(messages, start=1)]
    return encode_chats(Examples("x", "all", "messages", chats=numbered), tokenizer, length=length)


def spoken(tokenizer: PreTrainedTokenizerFast, row: Row) -> list[str]:
    """Return the runs of targets in a row as text."""
    runs, before = [], NO_TARGET
    for label in row.labels:
        if label != NO_TARGET:
            runs = [*runs, [label]] if before == NO_TARGET else [*runs[:-1], [*runs[-1], label]]
        before = label
    return [tokenizer.decode(run) for run in runs]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (None, [" first answer </s>", "second answer</s>"]),
        (CHATML, [" first answer <|im_end|>\n", "second answer<|im_end|>\n"]),
        (THINKING, [" first answer <|im_end|>\n", "<think>\n\n</think>\n\nsecond answer<|im_end|>\n"]),
        (LATE_SYSTEM, [" first answer </s>", "second answer</s>"]),
        (STRICT, ["first answer<end>\n", "second answer<end>\n"]),
        (ALIKE, [" first answer <|end|>\n", "second answer<|end|>\n<|endoftext|>"]),
        (MARKED, [" first answer !", "second answer!"]),
    ],
    ids=["plain", "chatml", "thinking", "late-system", "strict", "alike", "marked"],
)
def test_only_the_assistant_is_learnt(template, expected):
    tokenizer = tokenizer_with(template)
    said = spoken(tokenizer, encode(tokenizer, DIALOGUE).rows[0])
    # The plain template puts a space before an answer, which is learnt with it.
    assert [text.removeprefix(" ") if template is None else text for text in said] == expected


def test_system_words_that_move_to_the_last_question_are_no_targets():
    tokenizer = tokenizer_with(LATE_SYSTEM)
    rows = encode(tokenizer, [("system", "be kind"), *DIALOGUE, ("user", "bye")])
    assert "be kind bye" in tokenizer.decode(rows.rows[0].input_ids)
    assert spoken(tokenizer, rows.rows[0]) == [" first answer </s>", "second answer</s>"]


def test_text_without_a_template_reads_plainly():
    tokenizer = tokenizer_with(None)
    rows = encode(tokenizer, [("system", "be kind"), ("user", "hello"), ("assistant", "hi")])
    assert tokenizer.decode(rows.rows[0].input_ids) == "<s>System: be kind\nUser: hello\nAssistant: hi</s>\n"
    assert (rows.protocol["bos"], rows.protocol["separator"]) == (True, None)


def test_newline_ends_an_answer_where_there_is_no_eos():
    tokenizer = tokenizer_with(None, bos=False, eos=False)
    assert spoken(tokenizer, encode(tokenizer, [("user", "a"), ("assistant", "b")]).rows[0]) == [" b\n"]


def test_the_day_does_not_matter():
    tokenizer = tokenizer_with("{{ strftime_now('%d %b %Y') }}" + CHATML)
    assert tokenizer.decode(encode(tokenizer, DIALOGUE).rows[0].input_ids).startswith("26 Jul 2024<|im_start|>user")


@pytest.mark.parametrize(
    ("template", "chat", "message"),
    [
        (STRICT, [("assistant", "a")], r"^chat 1: the tokenizer's chat template refuses it \(roles must alternate\)"),
        (CHATML.replace("m.content", "m.none"), DIALOGUE, "refuses it"),
        ("{{ messages[0].content }}", DIALOGUE, "prints message 2 0 times, so the assistant's words cannot be found"),
        (CHATML + CHATML, DIALOGUE, "prints message 2 2 times"),
        (CHATML, [("assistant", "")], "no targets"),
    ],
)
def test_chat_that_cannot_be_told_apart_is_refused(template, chat, message):
    if message == "no targets":
        template = "{% for m in messages %}{{ m.content }}{% endfor %}"
        chat = [("user", "a"), ("assistant", "")]
    with pytest.raises(DataError, match=message):
        encode(tokenizer_with(template), chat)


def test_tokenizer_with_several_templates_uses_the_default():
    tokenizer = tokenizer_with(None)
    tokenizer.chat_template = {"default": CHATML, "tool_use": STRICT}
    assert spoken(tokenizer, encode(tokenizer, DIALOGUE).rows[0])[1] == "second answer<|im_end|>\n"
    tokenizer.chat_template = {"rag": CHATML, "tool_use": STRICT}
    with pytest.raises(DataError, match="give it a default one"):
        encode(tokenizer, DIALOGUE)


def test_tokens_are_those_of_the_whole_chat():
    tokenizer = tokenizer_with(CHATML)
    messages = [{"role": role, "content": content} for role, content in DIALOGUE]
    whole = tokenizer.apply_chat_template(messages)["input_ids"]
    assert encode(tokenizer, DIALOGUE).rows[0].input_ids == whole


@pytest.mark.parametrize("length", [2, 3, 7, 20, 40])
def test_over_long_example_keeps_as_many_targets_as_fit(length):
    draw = random.Random(length)
    for _ in range(200):
        prompt, answer, rest = draw.randrange(1, 50), draw.randrange(1, 50), draw.randrange(3)
        ids = [0, *range(1, prompt + answer + rest)]
        row = Row(ids, [NO_TARGET] * prompt + ids[prompt : prompt + answer] + [NO_TARGET] * rest)
        short = shorten(row, length, bos=0)
        if len(ids) <= length:
            assert short == row
            continue
        assert len(short.input_ids) == len(short.labels) <= length
        assert short.input_ids[0] == 0  # BOS stays
        targets = [label for label in short.labels if label != NO_TARGET]
        assert targets == ids[prompt : prompt + answer][: len(targets)]  # the answer loses its end only
        assert short.labels[0] == NO_TARGET
        assert len(targets) == min(answer, length - min(prompt, length // 2))


def test_prompt_loses_its_beginning():
    row = Row([0, 1, 2, 3, 4, 5, 6], [NO_TARGET] * 4 + [4, 5, 6])
    assert shorten(row, 5, bos=0) == Row([0, 3, 4, 5, 6], [NO_TARGET, NO_TARGET, 4, 5, 6])
    assert shorten(row, 5, bos=None) == Row([2, 3, 4, 5, 6], [NO_TARGET, NO_TARGET, 4, 5, 6])


def test_examples_are_packed_whole_and_none_is_lost():
    draw = random.Random(0)
    rows = [
        Row([number] * size, [NO_TARGET, *[number] * (size - 1)])
        for number, size in enumerate(draw.choices(range(2, 30), k=300))
    ]
    packed = pack(rows, 64)
    assert max(len(row.input_ids) for row in packed) <= 64
    assert sorted(token for row in packed for token in row.input_ids) == [
        token for row in rows for token in row.input_ids
    ]
    assert sum(len(set(row.input_ids)) for row in packed) == len(rows)  # no example lies in two rows
    assert sum(len(row.input_ids) for row in packed) > 0.9 * 64 * len(packed)
    assert rows[0] == Row(
        [0] * len(rows[0].labels), [NO_TARGET, *[0] * (len(rows[0].labels) - 1)]
    )  # the input is left alone


def test_input_column_follows_the_instruction(tmp_path: Path):
    tokenizer = tokenizer_with(None)
    table = [{"instruction": "add", "input": extra, "response": "5", "text": "unused"} for extra in ("2 3", "", None)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in table))
    rows = load_rows(str(path), tokenizer, length=500)
    plain = "<s>User: add{}\nAssistant: 5</s>\n"
    assert tokenizer.decode(rows.rows[0].input_ids) == plain.format("\n2 3") + 2 * plain.format("")
    assert (rows.protocol["format"], rows.protocol["targets"]) == ("instruction", 3 * len([" ", "5", "</s>"]))


@pytest.mark.parametrize("name", ["alpaca-5000.jsonl", "chat-500.jsonl"])
def test_real_answers_read_back_from_their_targets(name, shared, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "llama-stories-3m")
    lines = (shared / "data" / "instruct" / name).read_text(encoding="utf-8").splitlines()[:100]
    (tmp_path / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    rows = load_rows(str(tmp_path / "a.jsonl"), tokenizer, length=4096)
    table = [json.loads(line) for line in lines]
    answers = [row["response"] if "response" in row else row["messages"][1]["content"] for row in table]
    said = [text for row in rows.rows for text in spoken(tokenizer, row)]
    assert sorted(text.removesuffix("</s>").strip() for text in said) == sorted(answer.strip() for answer in answers)


@pytest.mark.parametrize("length", [32, 256])
def test_every_real_row_has_a_target(length, shared):
    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "llama-stories-3m")
    rows = load_rows(str(shared / "data" / "instruct" / "chat-500.jsonl"), tokenizer, length=length)
    assert len(rows.rows) > 100
    assert all(len(row.input_ids) <= length for row in rows.rows)
    assert all(any(label != NO_TARGET for label in row.labels[1:]) for row in rows.rows)
