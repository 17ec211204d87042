"""Data: rows hold what the texts say, nothing is both trained on and evaluated on, tokens fit the model."""

from __future__ import annotations

import json
import logging
import random
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from loraprune.data import Collator, Row, TokenRows, check_vocabulary, load, load_data, load_rows, sources, texts
from loraprune.errors import ConfigError, DataError
from tests.samples import byte_tokenizer, documents, joined, jsonl


def test_documents_are_joined_with_bos_and_eos_and_cut_into_full_rows(write, tokenizer):
    for name, text in (("a.txt", "one\n\ntwo"), ("b.txt", "three"), ("c.txt", "four!")):
        folder = str(Path(write(f"folder/{name}", text)).parent)
    rows = load_rows(folder, tokenizer, length=6)
    whole = tokenizer("one\n\ntwo</s><s>three</s><s>four!</s>")["input_ids"]
    assert joined(rows) == whole[:24]
    assert all(row.labels == row.input_ids and len(row.input_ids) == 6 for row in rows.rows)
    assert dict(rows.protocol) == {
        "source": folder, "format": "text", "split": "all", "rows": 4, "tokens": 24, "targets": 20, "length": 6,
        "bos": True, "separator": "</s>", "dropped_tokens": 0,
    }  # fmt: skip


def test_tail_is_dropped_and_counted(write, tokenizer):
    rows = load_rows(write("a.txt", "abcdefgh"), tokenizer, length=4)
    assert (len(rows), rows.protocol["dropped_tokens"]) == (2, 2)


def test_only_row_is_kept_short(write, tokenizer):
    rows = load_rows(write("a.txt", "abc"), tokenizer, length=100)
    assert [len(row.input_ids) for row in rows.rows] == [5]


def test_tokenizer_without_special_tokens_gets_none(write):
    tokenizer = byte_tokenizer(bos=False, eos=False)
    rows = load_rows(write("a.jsonl", jsonl({"text": "ab"}, {"text": "cd"})), tokenizer, length=4)
    assert tokenizer.decode(joined(rows)) == "abcd"
    assert (rows.protocol["bos"], rows.protocol["separator"]) == (False, None)


def test_eos_that_the_tokenizer_adds_is_not_doubled(write, tokenizer):
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    assert joined(load_rows(write("a.txt", "ab"), tokenizer, length=9)) == tokenizer("ab")["input_ids"]


def test_empty_texts_are_left_out(write, tokenizer):
    path = write("a.jsonl", jsonl({"text": ""}, {"text": "ab"}, {"text": " \n"}))
    assert joined(load_rows(path, tokenizer, length=9)) == tokenizer("ab</s>")["input_ids"]


def test_long_documents_raise_no_warning(write, tokenizer, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)  # which it is in some environments only
    text, tokenizer.model_max_length = "longer than the eight tokens of the model", 8
    load_rows(write("a.txt", text), tokenizer, length=8)
    assert not caplog.records
    tokenizer(text)
    assert "longer than the specified maximum" in caplog.text  # the control


def test_long_document_in_pieces_equals_the_whole(write, monkeypatch):
    draw = random.Random(0)
    lines = ["".join(draw.choices("ab  \n\t.é", k=draw.randrange(12))) for _ in range(400)]
    path = write("a.txt", "\n".join(lines) + "x")
    for tokenizer in (byte_tokenizer(), merging_tokenizer("\n".join(lines))):
        monkeypatch.setattr(texts, "PIECE", 1 << 20)
        whole = joined(load_rows(path, tokenizer, length=2))
        monkeypatch.setattr(texts, "PIECE", 40)
        assert len(list(texts._pieces("\n".join(lines)))) > 10
        assert joined(load_rows(path, tokenizer, length=2)) == whole


def merging_tokenizer(text: str) -> PreTrainedTokenizerFast:
    """A tokenizer that prepends a mark to each text and merges across the ends of lines: hard to cut."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(vocab_size=60, show_progress=False)
    tokenizer.train_from_iterator([text[start : start + 50] for start in range(0, len(text), 50)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_last_tenth_of_the_documents_is_held_out(write, tokenizer):
    stories = documents(40)
    data = load_data(write("a.jsonl", jsonl(*({"text": text} for text in stories))), tokenizer, length=8)
    train, held_out = (tokenizer.decode(joined(rows)) for rows in (data.train, data.held_out))
    assert ("</s><s>".join(stories[:36])).startswith(train.removeprefix("<s>")[:-8])
    assert "<s>" + "</s><s>".join(stories[36:]) + "</s>" == held_out + tail(stories[36:], held_out)
    assert (data.train.protocol["split"], data.held_out.protocol["split"]) == ("train", "held_out")


def tail(stories: list[str], text: str) -> str:
    return ("<s>" + "</s><s>".join(stories) + "</s>")[len(text) :]


def test_last_tenth_of_a_single_document_is_held_out(write, tokenizer):
    path = write("a.txt", "0123456789" * 8)
    data, everything = load_data(path, tokenizer, length=4), load_rows(path, tokenizer, length=4)
    assert (len(data.train), len(data.held_out)) == (18, 2)
    assert data.train.rows + data.held_out.rows == everything.rows
    assert (data.train.protocol["dropped_tokens"], data.held_out.protocol["dropped_tokens"]) == (0, 2)


def test_too_little_text_says_how_much_there_is(write, tokenizer):
    message = (
        r"a.txt: 12 tokens give 1 rows for training and 1 for evaluation at --length 5; 2 and 1 are needed: give a sho"
    )
    with pytest.raises(DataError, match=message):
        load_data(write("a.txt", "0123456789"), tokenizer, length=5)


def test_single_chat_cannot_be_split(write, tokenizer):
    with pytest.raises(DataError, match="0 rows for training"):
        load_data(write("a.jsonl", jsonl({"instruction": "a", "response": "b"})), tokenizer, length=50)


def test_another_source_can_be_held_out(write, tokenizer):
    path, other = write("a.txt", "a" * 30), write("b.txt", "b" * 10)
    data = load_data(path, tokenizer, length=8, held_out=other)
    assert joined(data.train) == joined(load_rows(path, tokenizer, length=8))
    assert joined(data.held_out) == joined(load_rows(other, tokenizer, length=8))


def test_text_that_is_trained_on_is_not_held_out(write, tokenizer):
    path = write("folder/a.txt", "a" * 90)
    with pytest.raises(DataError, match=r"^--eval .*a.txt is trained on as part of --data"):
        load_data(str(Path(path).parent), tokenizer, length=8, held_out=path)


def test_error_in_the_held_out_source_names_its_option(write, tokenizer):
    with pytest.raises(DataError, match=r"^--eval .*gone.txt"):
        load_data(write("a.txt", "a" * 90), tokenizer, length=8, held_out="gone.txt")


def test_at_most_so_many_rows_are_held_out(write, tokenizer, monkeypatch):
    monkeypatch.setattr(load, "HELD_OUT_ROWS", 3)
    held_out = load_data(write("a.txt", "a" * 400), tokenizer, length=4).held_out
    assert (len(held_out), held_out.protocol["tokens"], held_out.protocol["first_rows_only"]) == (3, 12, True)


def test_length_of_one_is_refused(write, tokenizer):
    with pytest.raises(ConfigError, match="--length 1: at least 2"):
        load_data(write("a.txt", "a" * 90), tokenizer, length=1)


def test_stdlib_has_its_own_held_out_modules(tokenizer, monkeypatch):
    monkeypatch.setattr(sources, "stdlib_texts", lambda *, held_out: ["held = out"] if held_out else documents(3))
    data = load_data("stdlib", tokenizer, length=12, held_out="stdlib")
    assert (
        joined(data.held_out)
        == joined(load_rows("stdlib", tokenizer, length=12))
        == tokenizer("held = out</s>")["input_ids"]
    )
    assert joined(data.train) == joined(load_rows("stdlib", tokenizer, length=12, split="train"))


def test_tokenizer_larger_than_the_embeddings_is_refused(tokenizer):
    check_vocabulary(tokenizer, 259)
    with pytest.raises(ConfigError, match="tokenizer does not fit the model: it has 259 tokens up to 258"):
        check_vocabulary(tokenizer, 258)


def test_special_token_beyond_the_embeddings_passes_unless_it_is_used(tokenizer):
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    check_vocabulary(tokenizer, 259)
    tokenizer.pad_token = "<image>"
    with pytest.raises(ConfigError, match="<image>"):
        check_vocabulary(tokenizer, 259)


def test_collator_pads_to_the_longest_row():
    rows = TokenRows((Row([1, 2, 3], [-100, 2, 3]), Row([4], [4])), {})
    batch = Collator(9)([rows[0], rows[1]])
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 2, 3], [4, -100, -100]]
    assert batch["labels"].dtype == torch.long


@pytest.mark.parametrize("model", ["llama-stories-260k", "llama-stories-3m"])
def test_real_stories_read_back_from_their_rows(model, shared):
    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / model)
    path = shared / "data" / "text" / "tinystories" / "valid.jsonl"
    stories = [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]
    rows = load_rows(str(path), tokenizer, length=128)
    encoded = [[*tokenizer(story, verbose=False)["input_ids"], tokenizer.eos_token_id] for story in stories]
    expected = [token for ids in encoded for token in ids]
    assert joined(rows) == expected[: len(joined(rows))]
    assert len(expected) - len(joined(rows)) == rows.protocol["dropped_tokens"] < 128


def test_real_long_text_in_pieces_equals_the_whole(monkeypatch, shared):
    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "llama-stories-3m")
    path = shared / "data" / "text" / "wikitext-2" / "valid.txt"
    text = path.read_text(encoding="utf-8")[:200_000]
    whole = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    monkeypatch.setattr(texts, "PIECE", 10_000)
    assert next(texts.tokenise([text], tokenizer)) == [tokenizer.bos_token_id, *whole, tokenizer.eos_token_id]
