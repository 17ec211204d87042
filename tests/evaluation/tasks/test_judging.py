"""Models for other tasks than text side by side, by their own figures, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from loraprune import cli
from tests.cli.cases import refused, run
from tests.data.images.conftest import save_classifier
from tests.evaluation.tasks.cases import reviews, save_bert, word_tokenizer, write_csv

CPU = ("--device", "cpu", "--length", "24")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two random classifiers, a masked language model, a classifier of images and two files of reviews."""
    root, tokenizer = tmp_path_factory.mktemp("judging"), word_tokenizer()
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        config = BertConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64 // (seed + 1), num_hidden_layers=1, num_attention_heads=4,
            max_position_embeddings=64, initializer_range=1.0, id2label={0: "bad", 1: "good"}, label2id={"bad": 0, "good": 1},
        )  # fmt: skip
        BertForSequenceClassification(config).save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    save_bert(root / "masked")
    save_classifier(root / "images")
    write_csv(root / "some.csv", reviews(40))
    write_csv(root / "more.csv", reviews(60, seed=3))
    return root


def test_two_classifiers_are_told_apart_row_by_row_on_several_files(
    root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    one, two = str(root / "one"), str(root / "two")
    files = [str(root / "some.csv"), str(root / "more.csv")]
    arguments = ["evaluate", "--model", two, "--against", one, "--data", f"[{', '.join(files)}]", *CPU]
    values = run(capfd, *arguments)
    assert [(entry["data"], entry["metric"]) for entry in values["measurements"]] == [
        (file, "accuracy") for file in files
    ]
    for entry, rows in zip(values["measurements"], (40, 60), strict=True):
        before, after = entry["models"][one], entry["models"][two]
        assert before["rows"] == after["rows"] == rows
        assert entry["difference"]["value"] == pytest.approx(after["accuracy"] - before["accuracy"])
        assert 0 < entry["difference"]["standard_error"] < before["standard_error"] + after["standard_error"]
    assert values["models"] == values["measurements"][0]["models"]
    assert cli.main(arguments) == 0
    shown = capfd.readouterr().out
    assert "accuracy on" in shown
    assert "paired by row" in shown


def test_models_for_one_task_stand_in_one_table(root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    models, output = [str(root / name) for name in ("one", "two")], tmp_path / "out"
    timing = ("--tokens", "2", "--repeats", "1", "--output", str(output))
    values = run(capfd, "compare-models", *models, "--data", str(root / "some.csv"), *CPU, *timing)
    assert (values["task"], values["metric"]) == ("sequence-classification", "accuracy")
    assert {values["accuracy"][name]["rows"] for name in models} == {40}
    assert "| accuracy |" in (output / "table.md").read_text(encoding="utf-8").splitlines()[0]
    assert (output / "plots" / "models.png").is_file()


def test_models_for_different_tasks_and_of_images_are_refused_in_one_line(
    root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    one, masked, images = (str(root / name) for name in ("one", "masked", "images"))
    output = ["--output", str(tmp_path / "out"), *CPU]
    refused(["compare-models", one, masked, *output], capfd, "different tasks", "masked-lm", root=tmp_path)
    other = str(save_classifier(tmp_path / "other"))
    refused(["compare-models", images, other, *output], capfd, "cannot be timed", "evaluate --against", root=tmp_path)


def test_lm_eval_asks_no_classifier(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("lm_eval")
    refused(
        ["evaluate", "--model", str(root / "one"), "--tasks", "piqa", *CPU], capfd, "--tasks piqa", "give only --data"
    )
