"""Data: every format and form becomes rows with targets, prompts are never targets, and bad files say what is wrong."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from loraprune.data import Collator, Data, Row, TokenRows, check_vocabulary, load_data, load_rows
from loraprune.data.encode import IGNORED, encode, pack, windows
from loraprune.data.load import split_examples
from loraprune.data.sources import Source, read_source
from loraprune.errors import ConfigError, DataError
from tests.samples import byte_tokenizer, sentences

TURN_TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
FORMATS = ["jsonl", "json", "csv", "parquet"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer()


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write a table in the format that the name ends with."""
    table = pyarrow.Table.from_pylist(rows)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif path.suffix == ".csv":
        table.to_pandas().to_csv(path, index=False)
    else:
        pyarrow.parquet.write_table(table, path)
    return path


def pairs(count: int) -> list[dict[str, Any]]:
    return [
        {"instruction": f"question {n}: {text}", "response": f"answer {n}"} for n, text in enumerate(sentences(count))
    ]


def decoded_targets(tokenizer: PreTrainedTokenizerFast, rows: TokenRows) -> str:
    """Return everything that is to be predicted, special tokens spelled out."""
    return str(tokenizer.decode([label for row in rows.rows for label in row.labels if label != IGNORED]))


def decoded_inputs(tokenizer: PreTrainedTokenizerFast, rows: TokenRows) -> str:
    return str(tokenizer.decode([token for row in rows.rows for token in row.input_ids]))


def numbers(text: str) -> set[str]:
    """Return the numbers of the sentences that begin in a text."""
    return set(re.findall(r"\[(\d{4})\]", text))


def check_rows(rows: TokenRows, length: int) -> None:
    """Every row is short enough, has a target beside its first token, and labels only its own tokens."""
    assert len(rows)
    for row in rows.rows:
        assert len(row.input_ids) == len(row.labels) <= length
        assert any(label != IGNORED for label in row.labels[1:])
        assert all(label in (IGNORED, token) for token, label in zip(row.input_ids, row.labels, strict=True))


def one_line(error: pytest.ExceptionInfo[Any], *words: object) -> None:
    """Check that a message is one line which names every one of `words`."""
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert str(word) in message, message


# Formats


@pytest.mark.parametrize("ending", FORMATS)
def test_each_table_format_gives_the_same_text_rows(
    ending: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = [{"text": text} for text in sentences(40)]
    first, _ = read_source(str(write(tmp_path / f"a.{ending}", rows)))
    assert list(first.examples) == [row["text"] for row in rows]
    check_rows(load_data(str(tmp_path / f"a.{ending}"), tokenizer, length=32).train, 32)


@pytest.mark.parametrize("ending", FORMATS)
def test_each_table_format_gives_the_same_instructions(ending: str, tmp_path: Path) -> None:
    source, other = read_source(str(write(tmp_path / f"a.{ending}", pairs(5))))
    assert other is None
    assert source.form == "instruction"
    assert [[turn["content"] for turn in chat] for chat in source.examples if not isinstance(chat, str)] == [
        [row["instruction"], row["response"]] for row in pairs(5)
    ]


@pytest.mark.parametrize("ending", ["jsonl", "json", "parquet"])
def test_each_nested_format_gives_the_same_chats(ending: str, tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "good day"}]
    source, _ = read_source(str(write(tmp_path / f"a.{ending}", [{"messages": chat}] * 3)))
    assert source.form == "messages"
    assert [list(example) for example in source.examples] == [chat] * 3


def test_txt_is_one_text_and_loses_no_token_inside_windows(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    text = "\n".join(sentences(60)) + "\nnaïve café 世界\n"
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    rows = load_rows(str(tmp_path / "a.txt"), tokenizer, length=40)
    assert ("<s>" + text).startswith(decoded_inputs(tokenizer, rows)[: 40 * len(rows) - 8])
    assert rows.protocol["dropped_tokens"] == (1 + len(text.encode()) + 1) % 40
    assert all(len(row.input_ids) == 40 for row in rows.rows)


def test_folder_joins_its_files_in_the_order_of_names(tmp_path: Path) -> None:
    for name, text in (("b.txt", "second"), ("a.txt", "first"), ("notes.md", "ignored")):
        (tmp_path / name).write_text(text)
    assert read_source(str(tmp_path))[0].examples == ("first", "second")


def test_folder_of_tables_is_one_table(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [{"text": "first"}])
    write(tmp_path / "b.jsonl", [{"text": "second"}])
    assert read_source(str(tmp_path))[0].examples == ("first", "second")


def test_stdlib_has_a_held_out_split_of_other_modules() -> None:
    train, held_out = read_source("stdlib")
    assert held_out is not None
    assert len(train.examples) > 5 * len(held_out.examples) > 0
    assert not {hash(text) for text in train.examples if len(text) > 200} & {
        hash(text) for text in held_out.examples if len(text) > 200
    }


def test_messages_win_over_other_columns_and_instruction_over_text(tmp_path: Path) -> None:
    both = [row | {"text": "unused"} for row in pairs(3)]
    assert read_source(str(write(tmp_path / "a.jsonl", both)))[0].form == "instruction"
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    assert read_source(str(write(tmp_path / "b.jsonl", [{"messages": chat, "text": "unused"}])))[0].form == "messages"


# Targets


@pytest.mark.parametrize("template", [None, TURN_TEMPLATE])
@pytest.mark.parametrize("length", [64, 256])
def test_prompts_are_never_targets_and_responses_always(template: str | None, length: int, tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    rows = load_rows(str(write(tmp_path / "a.jsonl", pairs(30))), tokenizer, length=length)
    check_rows(rows, length)
    end = "<end>" if template else "</s>"
    targets = decoded_targets(tokenizer, rows)
    assert "question" not in targets
    found = sorted(part for part in targets.split(end) if part)
    if length == 256:  # every pair fits whole
        assert found == sorted(f"answer {n}" for n in range(30))
    assert found


def test_input_column_belongs_to_the_prompt(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [{"instruction": "add", "input": extra, "response": "sum"} for extra in ("two and three", "", None)]
    loaded = load_rows(str(write(tmp_path / "a.jsonl", rows)), tokenizer, length=200)
    assert decoded_inputs(tokenizer, loaded).count("add\ntwo and three") == 1
    assert decoded_targets(tokenizer, loaded) == "sum</s>" * 3


def test_only_assistant_turns_of_a_long_chat_are_targets(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TURN_TEMPLATE
    chat = [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "ONE"},
        {"role": "user", "content": "two"},
        {"role": "assistant", "content": "TWO"},
        {"role": "user", "content": "unanswered"},
    ]
    rows = load_rows(str(write(tmp_path / "a.jsonl", [{"messages": chat}])), tokenizer, length=400)
    assert decoded_targets(tokenizer, rows) == "ONE<end>TWO<end>"
    assert decoded_inputs(tokenizer, rows) == (
        "<s><system>be kind<end><user>one<end><assistant>ONE<end><user>two<end><assistant>TWO<end>"
    )


def test_chats_without_an_answer_give_no_row(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    chat = [{"role": "user", "content": "anybody there"}]
    with pytest.raises(DataError) as error:
        load_rows(str(write(tmp_path / "a.jsonl", [{"messages": chat}])), tokenizer, length=64)
    one_line(error, tmp_path / "a.jsonl")


def test_template_that_refuses_a_chat_says_so(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('no system turn') }}"
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    with pytest.raises(DataError, match="no system turn") as error:
        load_rows(str(write(tmp_path / "a.jsonl", [{"messages": chat}])), tokenizer, length=64)
    one_line(error)


def test_template_that_rewrites_earlier_turns_is_refused(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ messages | length }}" + TURN_TEMPLATE
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    with pytest.raises(DataError, match="rewrites earlier turns") as error:
        load_rows(str(write(tmp_path / "a.jsonl", [{"messages": chat * 2}])), tokenizer, length=64)
    one_line(error, "row 1")


@pytest.mark.parametrize(("prompt", "answer"), [(500, 1), (500, 500), (1, 500), (20, 30), (0, 40), (31, 1), (40, 0)])
@pytest.mark.parametrize("length", [2, 3, 32])
def test_over_long_examples_keep_a_target(prompt: int, answer: int, length: int, tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    row = {"instruction": "q" * prompt, "response": "A" * answer}
    rows = load_rows(str(write(tmp_path / "a.jsonl", [row])), tokenizer, length=length)
    check_rows(rows, length)
    assert "q" not in decoded_targets(tokenizer, rows)


def test_packing_keeps_examples_whole_and_ordered_within_rows() -> None:
    draw = random.Random(0)
    rows = [Row([n] * size, [IGNORED, *[n] * (size - 1)]) for n, size in enumerate(draw.choices(range(2, 30), k=200))]
    packed = pack(rows, 64)
    assert max(len(row.input_ids) for row in packed) <= 64
    assert sum(len(row.input_ids) for row in packed) == sum(len(row.input_ids) for row in rows)
    places = [index for index, row in enumerate(packed) for _ in set(row.input_ids)]
    assert len(places) == len(rows)  # no example lies in two rows
    # Packing is worth its name: at most a tenth of the places stay empty.
    assert sum(len(row.input_ids) for row in packed) >= 0.9 * 64 * (len(packed) - 2)


def test_first_token_of_a_packed_example_is_no_target() -> None:
    packed = pack([Row([1, 2], [1, 2]), Row([3, 4], [3, 4])], 8)
    assert packed == [Row([1, 2, 3, 4], [IGNORED, 2, IGNORED, 4])]


def test_windows_drop_only_an_incomplete_last_one() -> None:
    assert [row.input_ids for row in windows(range(10), 4)] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert [row.input_ids for row in windows(range(3), 4)] == [[0, 1, 2]]
    assert windows([7], 4) == []


# Special tokens


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("eos", [True, False])
def test_texts_begin_and_end_with_the_tokens_the_tokenizer_has(bos: bool, eos: bool) -> None:
    tokenizer = byte_tokenizer(bos=bos, eos=eos)
    rows = encode(Source("x", "text", ("one", "two"), "train"), tokenizer, length=100)
    start, end = "<s>" * bos, "</s>" * eos
    assert decoded_inputs(tokenizer, rows) in (start + "one" + end + start + "two" + end, "onetwo")
    assert rows.rows[0].input_ids.count(0) == (2 if bos else 0)
    assert rows.rows[0].input_ids.count(1) == (2 if eos else 0)
    assert rows.protocol["bos"] is bos
    assert rows.protocol["separator"] == ("</s>" if eos else None)


@pytest.mark.parametrize("template", [None, "{{ bos_token }}" + TURN_TEMPLATE])
def test_a_chat_has_one_bos_whoever_adds_it(template: str | None, tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    rows = load_rows(str(write(tmp_path / "a.jsonl", pairs(4))), tokenizer, length=500)
    assert sum(row.input_ids.count(0) for row in rows.rows) == 4
    assert rows.rows[0].input_ids[0] == 0


def test_chat_of_a_tokenizer_without_bos_gets_none(tmp_path: Path) -> None:
    rows = load_rows(str(write(tmp_path / "a.jsonl", pairs(4))), byte_tokenizer(bos=False), length=500)
    assert not any(0 in row.input_ids for row in rows.rows)


def test_collator_pads_with_masked_tokens_that_are_no_targets() -> None:
    batch = Collator(9)([{"input_ids": [1, 2, 3], "labels": [IGNORED, 2, 3]}, {"input_ids": [4], "labels": [4]}])
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[IGNORED, 2, 3], [4, IGNORED, IGNORED]]


def test_tokenizer_with_more_tokens_than_the_model_is_refused() -> None:
    check_vocabulary(byte_tokenizer(), 259)
    with pytest.raises(ConfigError, match="does not fit") as error:
        check_vocabulary(byte_tokenizer(extra=5), 259)
    one_line(error, 263, 259)


# Splits


@pytest.mark.parametrize("form", ["text", "instruction", "one text"])
def test_held_out_rows_never_overlap_training(form: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    if form == "one text":
        path = tmp_path / "a.txt"
        path.write_text("\n".join(sentences(200)))
    else:
        found = [
            {"text": text} if form == "text" else {"instruction": "say", "response": text} for text in sentences(200)
        ]
        path = write(tmp_path / "a.jsonl", found)
    data = load_data(str(path), tokenizer, length=100)
    train, held_out = (numbers(decoded_inputs(tokenizer, rows)) for rows in (data.train, data.held_out))
    assert not train & held_out
    assert len(train) > 150
    assert len(held_out) >= 10
    assert max(train) < min(held_out)


def test_splitting_one_text_loses_and_repeats_nothing() -> None:
    text = "\n".join(sentences(50))
    train, held_out = split_examples(Source("x", "text", (text,), "train"))
    assert isinstance(train.examples[0], str)
    assert isinstance(held_out.examples[0], str)
    assert train.examples[0] + held_out.examples[0] == text
    assert held_out.examples[0].startswith("[")


def test_eval_names_the_held_out_rows(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    train = write(tmp_path / "a.jsonl", [{"text": text} for text in sentences(50)])
    other = write(tmp_path / "b.jsonl", [{"text": f"other {text}"} for text in sentences(20, seed=1)])
    data = load_data(str(train), tokenizer, length=10, held_out=str(other))
    assert "[0049]" in decoded_inputs(tokenizer, data.train)
    assert decoded_inputs(tokenizer, data.held_out).startswith("<s>other [0000]")


def test_plain_template_shows_roles_and_ends_answers(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    chat = [{"role": role, "content": role[0]} for role in ("user", "assistant", "user", "assistant")]
    rows = load_rows(str(write(tmp_path / "a.jsonl", [{"messages": chat}])), tokenizer, length=200)
    exchange = "### user\nu\n\n### assistant\na</s>"
    assert decoded_inputs(tokenizer, rows) == f"<s>{exchange}\n\n{exchange}"
    assert decoded_targets(tokenizer, rows) == "a</s>a</s>"


def test_same_source_gives_the_same_rows_twice(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = str(write(tmp_path / "a.jsonl", pairs(60)))
    first, second = (load_data(path, tokenizer, length=128) for _ in range(2))
    assert isinstance(first, Data)
    assert first == second


def test_protocol_counts_rows_tokens_and_targets(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = load_rows(str(write(tmp_path / "a.jsonl", pairs(20))), tokenizer, length=128)
    assert rows.protocol["rows"] == len(rows)
    assert rows.protocol["tokens"] == sum(len(row.input_ids) for row in rows.rows)
    assert rows.protocol["targets"] == sum(label != IGNORED for row in rows.rows for label in row.labels)
    assert rows.protocol["form"] == "instruction"


# Wrong input


def bad_files() -> dict[str, bytes]:
    """Return file names and contents that no reader can make sense of."""
    draw = random.Random(0)
    noise = bytes(draw.randrange(256) for _ in range(400))
    return {
        "empty.txt": b"", "empty.jsonl": b"", "empty.csv": b"", "empty.parquet": b"",
        "blank.txt": b" \n\n\t ",
        "latin.txt": "caf\xe9".encode("latin-1"),
        "noise.txt": b"\xff\xfe" + noise, "noise.csv": b"\x00\xff" + noise, "noise.parquet": noise, "noise.jsonl": noise,
        "torn.jsonl": b'{"text": "one"}\n{"text": "tw',
        "words.jsonl": b"this is no JSON\n",
        "torn.json": b'[{"text": "one"}, {"te',
        "latin.jsonl": '{"text": "caf\xe9"}\n'.encode("latin-1"),
        "latin.csv": "text\ncaf\xe9\n".encode("latin-1"),
        "column.jsonl": b'{"txet": "one"}\n',
        "column.csv": b"story,author\none,me\n",
        "null.jsonl": b'{"text": "one"}\n{"text": null}\n',
        "null.csv": b"text,n\none,1\n,2\n",
        "number.jsonl": b'{"text": 5}\n',
        "half.jsonl": b'{"instruction": "do it"}\n',
        "answer.jsonl": b'{"instruction": "do it", "response": null}\n',
        "chat.jsonl": b'{"messages": "hello"}\n',
        "turn.jsonl": b'{"messages": [{"role": "user"}]}\n',
        "none.jsonl": b'{"messages": null}\n',
        "short.txt": b"tiny",
        "story.txtt": b"some text", "story.docx": b"some text", "story": b"some text",
    }  # fmt: skip


@pytest.mark.parametrize("name", sorted(bad_files()))
def test_bad_file_is_one_line_that_names_it(name: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = tmp_path / name
    path.write_bytes(bad_files()[name])
    with pytest.raises(DataError) as error:
        load_data(str(path), tokenizer, length=32)
    one_line(error, path)


def test_truncated_parquet_is_one_line_that_names_it(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = write(tmp_path / "a.parquet", [{"text": text} for text in sentences(100)])
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(DataError) as error:
        load_data(str(path), tokenizer, length=32)
    one_line(error, path, "parquet")


@pytest.mark.parametrize("name", ["missing.txt", "missing.jsonl", "missing/folder", "./missing"])
def test_missing_source_is_one_line_that_names_it(
    name: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="no such file or folder") as error:
        load_data(name, tokenizer, length=32)
    one_line(error, name)


def test_folder_of_two_kinds_names_both(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    (tmp_path / "a.txt").write_text("one")
    write(tmp_path / "b.jsonl", [{"text": "two"}])
    with pytest.raises(DataError) as error:
        load_data(str(tmp_path), tokenizer, length=32)
    one_line(error, tmp_path, ".jsonl and .txt")


def test_folder_without_data_is_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(DataError) as error:
        load_data(str(tmp_path), tokenizer, length=32)
    one_line(error, tmp_path, ".parquet")


def test_messages_name_the_row_the_columns_and_the_nearest_ending(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    for name, words in {
        "null.jsonl": ["row 2", "'text'"], "answer.jsonl": ["row 1", "'response'"], "half.jsonl": ["response"],
        "column.csv": ["author", "story", "text"], "latin.txt": ["byte 3", "UTF-8"], "story.txtt": ["'.txt'"],
        "short.txt": ["--length", "32"],
    }.items():  # fmt: skip
        path = tmp_path / name
        path.write_bytes(bad_files()[name])
        with pytest.raises(DataError) as error:
            load_data(str(path), tokenizer, length=32)
        one_line(error, *words)


# Real data


@pytest.mark.parametrize(
    "name", ["text/tinystories/valid.jsonl", "instruct/alpaca-5000.jsonl", "instruct/chat-500.jsonl"]
)
def test_real_data_gives_rows_with_targets(name: str, shared: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "llama-stories-260k")
    data = load_data(str(shared / "data" / name), tokenizer, length=256)
    check_rows(data.train, 256)
    check_rows(data.held_out, 256)


def test_real_responses_are_the_only_targets(shared: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "llama-stories-3m")
    path = shared / "data" / "instruct" / "chat-500.jsonl"
    lines = [json.loads(line)["messages"] for line in path.read_text(encoding="utf-8").splitlines()[:50]]
    for turns in lines:
        rows = encode(Source("x", "messages", (turns,), "all"), tokenizer, length=10_000)
        plain = byte_tokenizer()
        whole = encode(Source("x", "messages", (turns,), "all"), plain, length=10_000)
        assert decoded_targets(plain, whole) == turns[1]["content"] + "</s>"
        # A real tokenizer adds a mark of its own in front of a piece, nothing else.
        assert turns[1]["content"].split() == decoded_targets(tokenizer, rows).replace("</s>", " ").split()
