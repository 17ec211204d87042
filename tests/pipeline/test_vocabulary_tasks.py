"""A cut of the vocabulary of models that are not decoders: T5 with Unigram, BERT with WordPiece, also with an untrained head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    T5Config,
    T5ForConditionalGeneration,
)

from loraprune.pipeline import prune
from tests.evaluation.tasks.cases import save_bert, write_csv
from tests.models.vocabulary.trained import CORPUS, bert_tokenizer, t5_tokenizer
from tests.pipeline.cases import prune_config, read_report
from tests.samples import jsonl

KNOWN = CORPUS[:3]
"""texts whose tokens are kept"""


def old_ids(before: PreTrainedTokenizerBase, after: PreTrainedTokenizerBase) -> list[int]:
    """Return the id before the cut of every token after it."""
    return [before.convert_tokens_to_ids(token) for token in after.convert_ids_to_tokens(range(len(after)))]


def check_split_alike(before: PreTrainedTokenizerBase, after: PreTrainedTokenizerBase) -> None:
    """Check that known texts have the same tokens and special tokens under other ids, and that others do not."""
    for text in KNOWN:
        ids = [one(text)["input_ids"] for one in (before, after)]
        assert before.convert_ids_to_tokens(ids[0]) == after.convert_ids_to_tokens(ids[1])
        assert ids[0] != ids[1]
    other = [one(CORPUS[3])["input_ids"] for one in (before, after)]
    assert len(other[1]) > len(other[0])


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a random T5 and pairs of texts."""
    root, tokenizer = tmp_path_factory.mktemp("t5"), t5_tokenizer()
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(tokenizer) + 5, d_model=32, d_kv=8, num_heads=4, d_ff=64, num_layers=2, pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id, decoder_start_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    T5ForConditionalGeneration(config).save_pretrained(root / "model")
    tokenizer.save_pretrained(root / "model")
    pairs = [{"source": KNOWN[place % 3], "target": KNOWN[(place + 1) % 3]} for place in range(24)]
    (root / "text.jsonl").write_text(jsonl(*pairs), encoding="utf-8")
    return root


def test_a_t5_keeps_the_tokens_of_sources_and_targets(t5: Path, tmp_path: Path) -> None:
    data = str(t5 / "text.jsonl")
    report = prune(prune_config(t5, tmp_path / "out", data=data, vocabulary="data", steps=3, length=64))
    assert report.vocabulary
    assert report.vocabulary["rows_changed"] == 0
    model, after = (
        AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out"),
        AutoTokenizer.from_pretrained(tmp_path / "out"),
    )
    assert model.config.vocab_size == len(after) == report.vocabulary["kept"] < report.vocabulary["dense"]
    assert model.num_parameters() == report.parameters[1]
    check_split_alike(AutoTokenizer.from_pretrained(t5 / "model"), after)
    assert after.convert_ids_to_tokens([model.config.decoder_start_token_id, model.config.eos_token_id]) == [
        "<pad>",
        "</s>",
    ]
    assert "<extra_id_0>" in after.get_vocab()
    written = model.generate(**after(KNOWN[0], return_tensors="pt"), max_new_tokens=4)
    assert written[0, 0] == after.pad_token_id


def test_the_logits_of_a_t5_are_equal(t5: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"data": str(t5 / "text.jsonl"), "steps": 0, "ratio": 0.0, "length": 64}
    prune(prune_config(t5, tmp_path / "out", vocabulary="data", **changes))
    logits, before = [], AutoTokenizer.from_pretrained(t5 / "model")
    for folder in (t5 / "model", tmp_path / "out"):
        model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        labels = tokenizer(text_target=KNOWN[1], return_tensors="pt")["input_ids"]
        logits.append(model(**tokenizer(KNOWN[0], return_tensors="pt"), labels=labels).logits[0])
    check_equal(logits, old_ids(before, tokenizer))


def check_equal(logits: list[torch.Tensor], old: list[int]) -> None:
    """Check that logits are those of the dense model in another order; in a third order they are not."""
    torch.testing.assert_close(logits[0][:, old], logits[1], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits[0][:, [*old[1:], old[0]]], logits[1], rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a random BERT, a text, and labelled texts."""
    root = tmp_path_factory.mktemp("bert")
    save_bert(root / "model", tokenizer=bert_tokenizer(), pad_token_id=bert_tokenizer().pad_token_id)
    (root / "text.txt").write_text("\n".join(KNOWN * 40), encoding="utf-8")
    write_csv(root / "labels.csv", [{"text": KNOWN[place % 3], "label": ("a", "b")[place % 2]} for place in range(40)])
    return root


def filled(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    text = KNOWN[0].replace("lazy", tokenizer.mask_token)
    return model(**tokenizer(text, return_tensors="pt")).logits[0]


def test_a_bert_fills_masks_as_before(bert: Path, tmp_path: Path) -> None:
    report = prune(prune_config(bert, tmp_path / "out", vocabulary="data", steps=0, ratio=0.0))
    before, after = (AutoTokenizer.from_pretrained(folder) for folder in (bert / "model", tmp_path / "out"))
    check_split_alike(before, after)
    models = [AutoModelForMaskedLM.from_pretrained(folder) for folder in (bert / "model", tmp_path / "out")]
    check_equal(
        [filled(model, one) for model, one in zip(models, (before, after), strict=True)], old_ids(before, after)
    )
    assert models[1].cls.predictions.bias.shape == (len(after),)
    assert after.mask_token == before.mask_token
    assert models[1].config.pad_token_id == after.pad_token_id
    assert set(report.quality.others) >= {"bits_per_byte", "accuracy"}


def test_a_masked_language_model_is_pruned_with_its_vocabulary(bert: Path, tmp_path: Path) -> None:
    report = prune(prune_config(bert, tmp_path / "out", vocabulary=200, steps=3))
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "out")
    assert model.config.vocab_size == 200
    assert model.num_parameters() == report.parameters[1]
    assert report.removed
    assert report.removed.ratio_reached == pytest.approx(0.5, abs=0.05)


def test_a_classifier_with_a_new_head_has_fewer_tokens(bert: Path, tmp_path: Path) -> None:
    report = prune(prune_config(bert, tmp_path / "out", data=str(bert / "labels.csv"), vocabulary="data", steps=3))
    assert report.metric == "accuracy"
    assert report.training.new == ("bert.pooler.dense", "classifier")
    assert "bits_per_byte" not in report.quality.others
    model, after = (
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "out"),
        AutoTokenizer.from_pretrained(tmp_path / "out"),
    )
    check_split_alike(AutoTokenizer.from_pretrained(bert / "model"), after)
    assert (
        model.get_input_embeddings().num_embeddings == len(after) == read_report(tmp_path / "out")["vocabulary"]["kept"]
    )
    assert set(model.config.id2label.values()) == {"a", "b"}
    assert model(**after(KNOWN[0], return_tensors="pt")).logits.shape == (1, 2)
