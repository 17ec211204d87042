"""Classes and numbers of texts from the command line: a head that starts anew, its names, its figures, and wrong input."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback

from loraprune.config.training import FinetuneConfig
from loraprune.evaluation.tasks.sequence_classification import is_head
from loraprune.models.adapters import attach_lora
from loraprune.models.loading import load_with_head
from loraprune.training.guard import StepGuard
from loraprune.training.resume.keeper import Keeper
from loraprune.training.setup import check_run, load_run
from loraprune.training.trainer import train
from tests.cli.cases import refused, run
from tests.evaluation.tasks.cases import SHORT, reviews, save_bert, write_csv
from tests.samples import jsonl


@pytest.fixture(scope="module")
def tuned(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a classifier pruned to 50 %, made from a masked language model by the command line."""
    output = tmp_path_factory.mktemp("tuned") / "out"
    command = [
        sys.executable, "-m", "loraprune", "prune", "--model", inputs / "masked", "--data", inputs / "reviews.csv", "--output",
        output, *SHORT, "--json",
    ]  # fmt: skip
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    assert (
        "randomly initialised and fully trained, as the checkpoint has no such head: bert.pooler.dense, classifier"
        in done.stderr
    )
    return output


def read_report(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return values


def test_a_masked_language_model_becomes_a_smaller_classifier_that_has_learnt(tuned: Path) -> None:
    report = read_report(tuned)
    assert (report["task"], report["metric"]) == ("sequence-classification", "accuracy")
    assert report["accuracy"]["pruned"] > 0.9 > 0.75 > report["accuracy"]["dense"]  # half of the labels are good
    assert report["accuracy"]["rows"] == 24
    assert report["trained_whole"] == ["bert.pooler.dense", "classifier"]
    assert report["ratio_reached"] == pytest.approx(0.5)
    assert "perplexity" not in report
    config = json.loads((tuned / "config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert config["id2label"] == {"0": "bad", "1": "good"}
    assert config["intermediate_size"] == 32


def test_plain_transformers_loads_it_and_names_the_classes(tuned: Path) -> None:
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(tuned), AutoTokenizer.from_pretrained(tuned)
    rows = reviews(40, seed=9)
    with torch.no_grad():
        batch = tokenizer([row["text"] for row in rows], return_tensors="pt", padding=True)
        found = model(**batch).logits.argmax(-1).tolist()
    right = sum(model.config.id2label[number] == row["label"] for number, row in zip(found, rows, strict=True))
    assert right > 0.9 * len(rows)


def test_evaluating_maps_labels_by_name(tuned: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    fresh = write_csv(tmp_path / "fresh.csv", reviews(60, seed=5))
    turned = [
        {"text": row["text"], "label": "bad" if row["label"] == "good" else "good"} for row in reviews(60, seed=5)
    ]
    write_csv(tmp_path / "turned.csv", turned)
    good, bad = (
        run(capfd, "evaluate", "--model", str(tuned), "--data", str(path), "--device", "cpu")["models"][str(tuned)]
        for path in (fresh, tmp_path / "turned.csv")
    )
    assert good["accuracy"] > 0.9
    assert good["accuracy"] + bad["accuracy"] == pytest.approx(1.0)
    share = good["accuracy"]
    assert good["standard_error"] == pytest.approx((share * (1 - share) / 60) ** 0.5, rel=0.3)


def test_a_new_head_follows_the_seed_alone(inputs: Path) -> None:
    def head(seed: int, noise: int) -> torch.Tensor:
        torch.manual_seed(noise)
        model, new = load_with_head(
            str(inputs / "bare"), "AutoModelForSequenceClassification", device=torch.device("cpu"),
            values={"id2label": {0: "a", 1: "b", 2: "c"}}, new=is_head, seed=seed,
        )  # fmt: skip
        assert new == ("classifier",)  # a bare BERT has its pooler
        assert model.num_labels == 3
        return model.classifier.weight.detach()  # type: ignore[no-any-return, union-attr]

    assert torch.equal(head(0, 1), head(0, 2))
    assert not torch.equal(head(0, 1), head(1, 1))


@pytest.mark.parametrize("compensate", ["false", "true"])
def test_pairs_and_numbers_are_learnt_with_heads_removed_too(
    inputs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], compensate: str
) -> None:
    pytest.importorskip("scipy")
    rows = [
        {"sentence1": one["text"], "sentence2": other["text"], "label": str(0.5 + (one["label"] == "good"))}
        for one, other in zip(reviews(80), reviews(80, seed=1), strict=True)
    ]
    report = run(
        capfd, "prune", "--model", str(inputs / "bare"), "--data", str(write_csv(tmp_path / "pairs.csv", rows)), "--output",
        str(tmp_path / "out"), *SHORT, "--steps=4", "--kinds=all", "--criterion=gate", f"--compensate={compensate}",
    )  # fmt: skip
    assert report["metric"] == "pearson"
    assert set(report["pearson"]) >= {"dense", "pruned", "spearman", "standard_error", "rows", "protocol"}
    assert {name.rpartition(".")[2] for name in report["units"]} == {
        "attention",
        "0",
        "1",
    }  # layers 0 and 1 are their FFN
    assert report["saved_as"]["model_type"] == "loraprune_bert"
    assert json.loads((tmp_path / "out" / "config.json").read_text())["problem_type"] == "regression"


def test_a_tuned_model_teaches_and_a_new_head_cannot(
    inputs: Path, tuned: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    common = ["--data", str(inputs / "reviews.csv"), *SHORT, "--steps=6", "--teacher=cache", "--ratio=0.3"]
    report = run(capfd, "prune", "--model", str(tuned), "--output", str(tmp_path / "taught"), *common)
    assert report["accuracy"]["dense"] > 0.9
    assert report["trained_whole"] == []
    refused(
        ["prune", "--model", str(inputs / "masked"), "--output", str(tmp_path / "out"), *common], capfd,
        "--teacher cache", "is untrained", "loraprune finetune",
    )  # fmt: skip
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"text": "a cat"}, {"text": "a dog"}], ["columns found: text", "`label`"]),
        ([{"text": "a cat", "label": "x"}, {"text": 3, "label": "y"}], ["line 2", "text is 3", "a string is needed"]),
        ([{"text": "a cat", "label": "x"}, {"text": "a dog", "label": None}], ["line 2", "label is missing"]),
        ([{"text": "a cat", "label": [1]}, {"text": "a dog", "label": 0}], ["line 1", "label is [1]"]),
        ([{"text": "a cat", "label": "x"}], ["1 rows", "at least two"]),
    ],
    ids=["no label", "no text", "null label", "list label", "one row"],
)
def test_wrong_rows_are_told_by_line(
    inputs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], rows: list[object], words: list[str]
) -> None:
    (tmp_path / "rows.jsonl").write_text(jsonl(*rows), encoding="utf-8")
    refused(
        ["prune", "--model", str(inputs / "bare"), "--data", str(tmp_path / "rows.jsonl"), "--task=sequence-classification",
         "--output", str(tmp_path / "out"), *SHORT], capfd, "--data", *words, root=tmp_path,
    )  # fmt: skip


def test_labels_that_the_model_does_not_know_are_refused(
    tuned: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write_csv(tmp_path / "other.csv", [{"text": "a cat", "label": "fine"}, {"text": "a dog", "label": "bad"}])
    arguments = ["evaluate", "--model", str(tuned), "--data", str(path), "--device", "cpu"]
    refused(arguments, capfd, "line 2", "'fine'", "bad, good")


def test_a_task_that_the_model_cannot_have_is_refused(inputs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["inspect", "--model", str(inputs / "bare"), "--task"]
    refused([*arguments, "seq2seq"], capfd, "--task seq2seq", "AutoModelForSeq2SeqLM", "'bert'")
    refused([*arguments, "sequence-clasification"], capfd, "did you mean 'sequence-classification'?")


def test_evaluating_without_a_head_is_refused(inputs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["evaluate", "--model", str(inputs / "bare"), "--data", str(inputs / "reviews.csv"), "--device", "cpu"]
    refused(arguments, capfd, "no head for classes yet", "tune it")


class Norms(TrainerCallback):
    """Writes down the norm of all gradients before each step."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def on_pre_optimizer_step(self, *arguments: Any, **named: Any) -> None:
        grads = [p.grad.flatten() for p in named["model"].parameters() if p.grad is not None]
        self.found.append(torch.cat(grads).norm().item())


def test_accumulated_gradients_are_those_of_the_whole_batch(inputs: Path, tmp_path: Path) -> None:
    """BERT takes any argument but its loss knows nothing of accumulation: the Trainer must divide."""
    model = save_bert(tmp_path / "still", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    norms = []
    for batch, accumulate in ((8, 1), (2, 4)):
        config = FinetuneConfig(
            model=str(model), data=str(inputs / "reviews.csv"), output=str(tmp_path / str(batch)), steps=1, batch=batch,
            accumulate=accumulate, dropout=0.0, clip=0.0, length=24, device="cpu",
        )  # fmt: skip
        job = check_run(config)
        held = load_run(job)
        adapted = attach_lora(held.model, job.groups, rank=4, alpha=8.0, dropout=0.0, seed=0, whole=held.dense.new)
        callback = Norms()
        keeper = Keeper(tmp_path, {}, every=0, parts=[], guard=StepGuard())
        train(
            adapted, job.data, config=config, task=job.task, callbacks=[callback], keeper=keeper
        )  # fmt: skip
        norms += callback.found
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
