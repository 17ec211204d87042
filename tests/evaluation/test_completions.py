"""What models are shown to write: the greedy continuation, and prompts worth reading."""

from __future__ import annotations

import pytest
import torch

from loraprune.data import Row, TokenRows
from loraprune.evaluation.completions import NEW_TOKENS, PROMPT_TOKENS, complete, decode, draw_prompts
from tests.samples import byte_tokenizer, tiny_llama

BOS, EOS = 0, 1


def test_a_completion_is_the_likeliest_token_at_every_place() -> None:
    model, tokenizer = tiny_llama(max_position_embeddings=128), byte_tokenizer()
    ids = tokenizer("one small tree")["input_ids"]
    prompt, found = list(ids), []
    with torch.no_grad():
        for _ in range(12):
            found.append(int(model(input_ids=torch.tensor([ids + found])).logits[0, -1].argmax()))
            if found[-1] == EOS:
                break
    assert complete(model, tokenizer, prompt, new_tokens=12) == decode(tokenizer, found)
    assert ids == prompt


def test_the_modes_and_the_random_state_stay() -> None:
    model, tokenizer = tiny_llama().train(), byte_tokenizer()
    before = torch.get_rng_state()
    complete(model, tokenizer, [BOS, 5, 6])
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)


def test_a_completion_ends_where_the_positions_do() -> None:
    model, tokenizer = tiny_llama(max_position_embeddings=16), byte_tokenizer()
    assert complete(model, tokenizer, [5] * 16) == ""
    assert 0 < len(tokenizer(complete(model, tokenizer, [5] * 12), add_special_tokens=False)["input_ids"]) <= 12


def test_a_prompt_begins_where_a_document_does() -> None:
    row = [40] * 10 + [EOS, BOS] + list(range(50, 90))
    rows = TokenRows((Row(row, row),), {})
    (prompt,) = draw_prompts(rows, byte_tokenizer())
    assert prompt == [BOS, *range(50, 50 + PROMPT_TOKENS - 1)]


@pytest.mark.parametrize(
    ("text", "begins"),
    [
        ("lf a word. A tree grows here. ", "A tree"),
        ("lf a word of more ", "a word"),
        ("nowordhereatall", "nowordhereatall"),
    ],
)
def test_the_prompt_of_a_text_begins_with_a_sentence_or_a_word(text: str, begins: str) -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer(text + "x" * PROMPT_TOKENS, add_special_tokens=False)["input_ids"]
    (prompt,) = draw_prompts(TokenRows((Row(ids, ids),), {}), tokenizer)
    assert decode(tokenizer, prompt).strip().startswith(begins[:PROMPT_TOKENS])


def test_the_prompt_of_an_instruction_is_its_whole_prompt() -> None:
    ids = list(range(10, 60))
    rows = TokenRows((Row(ids, [-100] * 30 + ids[30:]),), {})
    assert draw_prompts(rows, byte_tokenizer()) == [ids[:30]]


def test_prompts_are_spread_over_the_data_and_few() -> None:
    rows = TokenRows(tuple(Row([n + 10] * 40, [n + 10] * 40) for n in range(9)), {})
    assert [prompt[0] for prompt in draw_prompts(rows, byte_tokenizer())] == [10, 13, 16]
    assert NEW_TOKENS > PROMPT_TOKENS
