"""Masked language models: what is hidden is fixed, what is evaluated is hidden, and a run ends with a smaller one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForMaskedLM, BertTokenizer

from loraprune.data import load_rows
from loraprune.evaluation.tasks import Request, choose_task
from loraprune.evaluation.tasks.masked_lm import HIDDEN, MASKED, MaskedRows, predictions
from loraprune.models.opening import load_config
from tests.cli.cases import refused, run
from tests.evaluation.tasks.cases import SHORT, save_bert, word_tokenizer
from tests.samples import save_tiny, sentences


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("inputs")
    save_bert(root / "model")
    (root / "text.txt").write_text("\n".join(line[7:] for line in sentences(400)), encoding="utf-8")
    return root


def masked_rows(inputs: Path) -> MaskedRows:
    config = load_config(str(inputs / "model"))
    task = choose_task(config, None, data=str(inputs / "text.txt"))
    request = Request(str(inputs / "model"), config, str(inputs / "text.txt"), None, 32)
    rows = task.prepare(request).training
    assert isinstance(rows, MaskedRows)
    return rows


def test_texts_without_labels_are_filled_in(inputs: Path) -> None:
    config = load_config(str(inputs / "model"))
    assert choose_task(config, None, data=str(inputs / "text.txt")).name == "masked-lm"


def test_a_row_hides_the_same_tokens_wherever_it_stands(inputs: Path) -> None:
    rows = masked_rows(inputs)
    assert rows[3] == rows[3] == rows.take([5, 3])[1]
    assert rows[3] != rows[4]
    ids = torch.tensor([rows[place]["input_ids"] for place in range(len(rows))])
    labels = torch.tensor([rows[place]["labels"] for place in range(len(rows))])
    hidden, tokenizer = labels != -100, word_tokenizer()
    assert hidden.float().mean().item() == pytest.approx(HIDDEN, abs=0.03)
    assert (ids[hidden] == tokenizer.mask_token_id).float().mean().item() == pytest.approx(MASKED, abs=0.06)
    assert not (labels[hidden].unsqueeze(1) == torch.tensor(tokenizer.all_special_ids)).any()
    whole = torch.where(hidden, labels, ids)
    plain = load_rows(str(inputs / "text.txt"), tokenizer, length=32)
    assert whole[0].tolist() == plain[0]["input_ids"]
    assert plain[0]["input_ids"][0] == tokenizer.cls_token_id  # and only once a document
    assert tokenizer.sep_token == plain.protocol["separator"]


def test_a_pruned_model_fills_in_better_than_before(
    inputs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    report = run(
        capfd, "prune", "--model", str(inputs / "model"), "--data", str(inputs / "text.txt"), "--output", str(tmp_path / "out"),
        *SHORT, "--teacher=cache", "--compensate=true", "--criterion=gate", "--calibration=1024",
    )  # fmt: skip
    measured = report["perplexity"]
    assert measured["pruned"] < measured["dense"]
    assert set(measured["accuracy"]) == {"dense", "pruned"}
    assert report["trained_whole"] == []
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "out")
    assert model.num_parameters() == report["parameters"]["pruned"]
    judged = run(
        capfd, "evaluate", "--model", str(tmp_path / "out"), "--data", str(inputs / "text.txt"), "--device", "cpu"
    )
    assert judged["models"][str(tmp_path / "out")]["metric"] == "perplexity"


def test_a_real_text_with_a_real_vocabulary(shared: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    vocabulary, text = (
        shared / "data" / "bert-vocab" / "vocab.txt",
        shared / "data" / "text" / "wikitext-2" / "valid.txt",
    )
    if not (vocabulary.is_file() and text.is_file()):
        pytest.skip(f"no {vocabulary} or no {text}")
    save_bert(tmp_path / "model", tokenizer=BertTokenizer(str(vocabulary)))
    (tmp_path / "text.txt").write_text("\n".join(text.read_text(encoding="utf-8").split("\n")[:60]), encoding="utf-8")
    report = run(
        capfd, "prune", "--model", str(tmp_path / "model"), "--data", str(tmp_path / "text.txt"), "--output",
        str(tmp_path / "out"), *SHORT, "--steps=6",
    )  # fmt: skip
    assert (report["task"], report["metric"]) == ("masked-lm", "perplexity")
    assert report["perplexity"]["pruned"] < report["perplexity"]["dense"]
    assert report["perplexity"]["dense"] == pytest.approx(30522, rel=0.5)  # random weights know nothing
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "out")
    assert model.num_parameters() == report["parameters"]["pruned"]


def test_the_perplexity_is_that_of_transformers_own_loss(inputs: Path) -> None:
    config = load_config(str(inputs / "model"))
    task = choose_task(config, None, data=str(inputs / "text.txt"))
    prepared = task.prepare(Request(str(inputs / "model"), config, None, str(inputs / "text.txt"), 32))
    model = AutoModelForMaskedLM.from_pretrained(inputs / "model").eval()
    rows = prepared.held_out
    batch = prepared.collator([rows[place] for place in range(len(rows))])
    with torch.no_grad():
        out = model(**batch)
    measured = task.evaluate(model, prepared, 7)
    assert measured.others["nll"] == pytest.approx(out.loss.item(), rel=1e-5)
    logits = predictions(out.logits, batch["labels"])
    direct = functional.cross_entropy(logits, batch["labels"][batch["labels"] != -100]).item()
    assert measured.others["nll"] == pytest.approx(direct, rel=1e-5)
    assert measured.standard_error is not None


def test_a_tokenizer_without_a_mask_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str], inputs: Path) -> None:
    save_bert(tmp_path / "model")
    tokenizer = word_tokenizer()
    tokenizer.mask_token = None
    tokenizer.save_pretrained(tmp_path / "model")
    refused(
        ["prune", "--model", str(tmp_path / "model"), "--data", str(inputs / "text.txt"), "--output", str(tmp_path / "o"), *SHORT],
        capfd, "no mask token",
    )  # fmt: skip
    save_tiny(tmp_path / "llama")
    arguments = [
        "evaluate",
        "--model",
        str(tmp_path / "llama"),
        "--data",
        str(inputs / "text.txt"),
        "--task",
        "masked-lm",
    ]
    refused(arguments, capfd, "--task masked-lm", "'llama'")
