"""Models and data that do not go together: one line that says so before any work, with what to do."""

from __future__ import annotations

import shutil
from pathlib import Path

import datasets
import pyarrow as pa
import pytest
from pyarrow import parquet
from transformers import BertConfig, BertForSequenceClassification, BertForTokenClassification

from loraprune.data.images import open_images
from loraprune.errors import DataError
from tests.cli.cases import refused
from tests.data.images.conftest import write_images
from tests.evaluation.tasks.cases import reviews, save_bert, word_tokenizer, write_csv
from tests.samples import jsonl, save_tiny, write_text

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}


def save_head(kind: type, folder: Path, **options: object) -> Path:
    tokenizer = word_tokenizer()
    kind(BertConfig(vocab_size=len(tokenizer), **SMALL, **options)).save_pretrained(folder)  # type: ignore[arg-type]
    tokenizer.save_pretrained(folder)
    return folder


def prune(model: Path, data: Path, root: Path) -> list[str]:
    return [
        "prune",
        "--model",
        str(model),
        "--data",
        str(data),
        "--output",
        str(root / "out"),
        "--steps",
        "2",
        "--device",
        "cpu",
    ]


@pytest.mark.parametrize("label", [1, [0, 1, 0]])
def test_a_model_of_several_labels_is_refused(label: object, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = save_head(
        BertForSequenceClassification, tmp_path / "m", num_labels=3, problem_type="multi_label_classification"
    )
    rows = [{"text": row["text"], "label": label if place else 2} for place, row in enumerate(reviews(20))]
    (tmp_path / "a.jsonl").write_text(jsonl(*rows))
    words = ("multi_label_classification", "your own Trainer") if label == 1 else ("only one label a text",)
    refused(prune(model, tmp_path / "a.jsonl", tmp_path), capfd, *words, root=tmp_path)


def test_a_token_classifier_is_described_and_refused_where_no_task_has_its_head(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = save_head(BertForTokenClassification, tmp_path / "m", num_labels=5)
    text = write_text(tmp_path / "t.txt")
    refused(
        prune(model, text, tmp_path), capfd, "no task trains or evaluates", "BertForTokenClassification", root=tmp_path
    )
    export = ["export", "--model", str(model), "--format", "onnx", "--output", str(tmp_path / "x")]
    refused(export, capfd, "BertForTokenClassification", root=tmp_path)


def test_a_bare_encoder_is_not_called_broken(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = save_bert(tmp_path / "m", head=False)
    refused(
        prune(model, write_text(tmp_path / "t.txt"), tmp_path), capfd, "no head for MaskedLM", "BertModel", "labels"
    )  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_a_folder_without_a_tokenizer_is_named_as_such(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    save_tiny(tmp_path / "whole")
    (tmp_path / "m").mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(tmp_path / "whole" / name, tmp_path / "m")
    refused(prune(tmp_path / "m", write_text(tmp_path / "t.txt"), tmp_path), capfd, "holds no tokenizer", root=tmp_path)


def test_labels_of_one_class_are_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows = [{"text": row["text"], "label": "ok"} for row in reviews(40)]
    refused(
        prune(save_bert(tmp_path / "m"), write_csv(tmp_path / "a.csv", rows), tmp_path), capfd, "'ok'", "two classes", root=tmp_path
    )  # fmt: skip


def image_table(root: Path, odd: object) -> Path:
    """Write a parquet file of images, the second of which is `odd`."""
    files = sorted((write_images(root / "images")).rglob("*.png"))[:4]
    images: list[object] = [{"bytes": file.read_bytes(), "path": None} for file in files]
    images[1] = odd if odd != "fine" else images[1]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    parquet.write_table(pa.table({"image": pa.array(images, kind), "label": [0, 0, 1, 1]}), root / "a.parquet")
    return root / "a.parquet"


@pytest.mark.parametrize("odd", [None, {"bytes": None, "path": None}, {"bytes": b"", "path": None}])
def test_an_image_that_is_missing_is_named_by_its_row(odd: object, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="row 2: the image is missing"):
        open_images(str(image_table(tmp_path, odd)), "train")


def test_images_in_a_file_need_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", Path("/proc/none"))
    assert len(open_images(str(image_table(tmp_path, "fine")), "train").images) == 4
    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["x", "y"])})
    files = sorted(str(file) for file in (tmp_path / "images").rglob("*.png"))[:2]
    datasets.Dataset.from_dict({"image": files, "label": [0, 1]}, features=kinds).to_parquet(tmp_path / "b.parquet")
    assert open_images(str(tmp_path / "b.parquet"), "train").classes == ("x", "y")
