"""A cut tokenizer splits the texts that its tokens were chosen from as before, and still encodes every other text."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from loraprune.errors import ConfigError
from loraprune.models.vocabulary import byte_lengths
from loraprune.models.vocabulary.choice import kind_of, tokenizer_values
from loraprune.models.vocabulary.tokenizer import cut_values
from tests.models.vocabulary.trained import ANY_TEXT, CORPUS, KINDS, KNOWN, chosen, ids_of, saved, tokenizer_of

OTHER = "unquestionably 42 Ωμέγα, 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 and\ttabs\n  indented; smörgåsbords"


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def both(
    kind: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase]:
    """Return a tokenizer before and after a cut to the tokens of one text."""
    tokenizer = tokenizer_of(kind)
    return tokenizer, saved(tokenizer, chosen(tokenizer, KNOWN), tmp_path_factory.mktemp("cut"))


def test_texts_that_the_tokens_were_chosen_from_are_split_as_before(kind: str, tmp_path: Path) -> None:
    tokenizer, texts = tokenizer_of(kind), CORPUS[:2]
    choice = chosen(tokenizer, *texts)
    after = saved(tokenizer, choice, tmp_path)
    assert len(after) < len(tokenizer)
    for before, now in zip(ids_of(tokenizer, *texts), ids_of(after, *texts), strict=True):
        assert tokenizer.convert_ids_to_tokens(before) == after.convert_ids_to_tokens(now)
        assert [choice.new[token] for token in before] == now
    [before], [now] = ids_of(tokenizer, CORPUS[2]), ids_of(after, CORPUS[2])  # control: tokens of other texts are gone
    assert tokenizer.convert_ids_to_tokens(before) != after.convert_ids_to_tokens(now)


def test_a_text_whose_tokens_are_all_kept_is_split_as_before(kind: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(kind)
    choice = chosen(tokenizer, *CORPUS, amount=len(tokenizer) * 4 // 5)
    after = saved(tokenizer, choice, tmp_path)
    kept = [text for text, [ids] in ((text, ids_of(tokenizer, text)) for text in f"{KNOWN} {' '.join(CORPUS)}".split())
            if set(ids) <= set(choice.kept)]  # fmt: skip
    assert len(kept) > 20
    for text in kept:
        [before], [now] = ids_of(tokenizer, text), ids_of(after, text)
        assert [choice.new[token] for token in before] == now


def test_every_merge_is_closed(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    values = tokenizer_values(tokenizer)
    if values["model"]["type"] != "BPE":
        pytest.skip("no merges")
    model = cut_values(values, chosen(tokenizer, KNOWN).new)["model"]
    tokens = set(model["vocab"])
    assert model["merges"]
    for left, right in model["merges"]:
        assert {left, right, left + right} <= tokens
    made = {left + right for left, right in model["merges"]}
    for token in tokenizer.convert_ids_to_tokens(ids_of(tokenizer, KNOWN)[0]):
        assert token in made or len(token) == 1 or token in tokenizer.all_special_tokens
    less = tokens - {max(made, key=len)}  # control: without a token its merge would be open
    assert not all({left, right, left + right} <= less for left, right in model["merges"])


@pytest.mark.parametrize("kind", ANY_TEXT)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁")))
def test_any_text_round_trips(kind: str, text: str, cut: dict[str, PreTrainedTokenizerBase]) -> None:
    tokenizer = cut[kind]
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> dict[str, PreTrainedTokenizerBase]:
    return {
        kind: saved(tokenizer_of(kind), chosen(tokenizer_of(kind), KNOWN), tmp_path_factory.mktemp("cut"))
        for kind in ANY_TEXT
    }


def test_what_was_known_stays_known(both: tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase]) -> None:
    before, after = both
    for text in CORPUS:
        assert after.unk_token_id not in after(text)["input_ids"]
        assert after.decode(after(text)["input_ids"]) == before.decode(before(text)["input_ids"])
    assert after.unk_token == before.unk_token
    if before.unk_token_id in before(OTHER)["input_ids"]:  # what was unknown still is
        assert after.unk_token_id in after(OTHER)["input_ids"]


def test_special_and_added_tokens_and_the_chat_template_are_the_same(
    both: tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase],
) -> None:
    before, after = both
    assert {token.content for token in before.added_tokens_decoder.values()} == {
        token.content for token in after.added_tokens_decoder.values()
    }
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        assert getattr(before, name) == getattr(after, name)
    chat = [{"role": "user", "content": KNOWN}]
    assert before.chat_template == after.chat_template
    assert after.decode(after.apply_chat_template(chat)["input_ids"]) == before.decode(
        before.apply_chat_template(chat)["input_ids"]
    )
    assert sorted(after.get_vocab().values()) == list(range(len(after)))  # no gaps


def test_the_bytes_of_a_text_do_not_depend_on_its_tokens(
    both: tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase],
) -> None:
    counts = [sum(byte_lengths(one)[token] for token in ids_of(one, *CORPUS[3:5])[0]) for one in both]
    assert counts[0] == counts[1]
    plain = len(CORPUS[3].encode())
    assert counts[0] in (plain, plain + 1) or "##" in json.dumps(tokenizer_values(both[0])["model"]["vocab"])
    assert len(ids_of(both[0], CORPUS[3])[0]) < len(ids_of(both[1], CORPUS[3])[0])  # although there are more tokens


def test_a_number_keeps_so_many_and_the_most_frequent(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    base = set(chosen(tokenizer, "").kept)
    few, many = (set(chosen(tokenizer, *CORPUS, amount=len(base) + more).kept) for more in (10, 30))
    assert base < few < many < set(tokenizer.get_vocab().values())
    assert (len(few), len(many)) == (len(base) + 10, len(base) + 30)
    counts = Counter(token for ids in ids_of(tokenizer, *CORPUS) for token in ids if token not in base)
    ranked = [token for token, _ in counts.most_common()]
    assert counts[ranked[0]] > counts[ranked[40]]
    assert ranked[0] in few
    assert ranked[-1] not in many  # control: a rare one is not kept


def test_a_number_that_a_vocabulary_cannot_have_is_refused(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    least, most = len(chosen(tokenizer, "").kept), len(tokenizer)
    assert chosen(tokenizer, KNOWN, amount=most).kept == tuple(range(most))
    assert len(chosen(tokenizer, KNOWN, amount=least).kept) == least
    with pytest.raises(ConfigError, match=rf"--vocabulary {most + 1}: the model has {most} tokens; give fewer"):
        chosen(tokenizer, KNOWN, amount=most + 1)
    with pytest.raises(ConfigError, match=rf"--vocabulary {least - 1}: .* alone are {least}; give at least"):
        chosen(tokenizer, KNOWN, amount=least - 1)


@pytest.mark.parametrize(
    ("model", "what"),
    [
        ({"type": "WordLevel"}, "WordLevel"),
        ({"type": "BPE", "end_of_word_suffix": "</w>"}, "BPE with end_of_word_suffix"),
    ],
)
def test_other_kinds_are_refused_by_name(model: dict[str, str], what: str) -> None:
    with pytest.raises(ConfigError, match=f"--vocabulary: the tokenizer is of kind {what}; .*leave --vocabulary out"):
        kind_of({"model": model})


def test_a_tokenizer_without_its_file_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"object has no tokenizer.json, and only that can be cut; save a fast tokenizer"
    ):
        tokenizer_values(object())  # type: ignore[arg-type]
