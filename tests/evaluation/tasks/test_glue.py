"""Tasks of GLUE from the command line: their own split, their own figure, real pairs with a real vocabulary."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertTokenizer

from tests.cli.cases import refused, run
from tests.evaluation.tasks.cases import SHORT, reviews, save_bert


def test_a_folder_of_glue_is_trained_on_and_judged_by_its_own_split_and_figure(
    inputs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn")
    (tmp_path / "CoLA").mkdir()
    for name, rows in (("train", reviews(64)), ("dev", reviews(20, seed=1))):
        lines = [f"gj04\t{int(row['label'] == 'good')}\t\t{row['text']}" for row in rows]
        (tmp_path / "CoLA" / f"{name}.tsv").write_text("\n".join(lines), encoding="utf-8")
    common = ["--data", str(tmp_path / "CoLA"), *SHORT, "--steps=2"]
    report = run(capfd, "finetune", "--model", str(inputs / "bare"), "--output", str(tmp_path / "out"), *common)
    assert report["metric"] == "matthews_correlation"
    assert report["matthews_correlation"]["rows"] == 20
    assert set(report["matthews_correlation"]["accuracy"]) == {"dense", "pruned"}
    assert report["training_data"]["rows"] == 64
    assert json.loads((tmp_path / "out" / "config.json").read_text())["id2label"]["1"] == "acceptable"
    (tmp_path / "CoLA" / "dev.tsv").unlink()
    arguments = ["finetune", "--model", str(inputs / "bare"), "--output", str(tmp_path / "other"), *common]
    refused(arguments, capfd, "dev.tsv is missing from GLUE's CoLA")


@pytest.mark.parametrize(
    ("name", "metric", "judged", "head"),
    [("MRPC", "f1", 408, 2), ("STS-B", "pearson", 1500, 1)],
    ids=["classes", "numbers"],
)
def test_real_pairs_with_a_real_vocabulary(
    shared: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str, metric: str, judged: int, head: int
) -> None:  # fmt: skip
    pytest.importorskip("sklearn")
    pytest.importorskip("scipy")
    vocabulary, data = shared / "data" / "bert-vocab" / "vocab.txt", shared / "data" / "glue" / name
    if not (vocabulary.is_file() and data.is_dir()):
        pytest.skip(f"no {vocabulary} or no {data}")
    save_bert(tmp_path / "model", tokenizer=BertTokenizer(str(vocabulary)))
    report = run(
        capfd, "prune", "--model", str(tmp_path / "model"), "--data", str(data), "--output", str(tmp_path / "out"), *SHORT,
        "--steps=4", "--rows=64", "--length=64", "--criterion=movement",
    )  # fmt: skip
    assert report["metric"] == metric
    assert (report[metric]["rows"], report["training_data"]["rows"]) == (judged, 64)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert (loaded.num_labels, loaded.num_parameters()) == (head, report["parameters"]["pruned"])
    assert report["ratio_reached"] == pytest.approx(0.5)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.tokenize("playing chess") == ["playing", "chess"]
    encoded = tokenizer("a", "b")
    assert encoded["token_type_ids"] == [0, 0, 0, 1, 1]
