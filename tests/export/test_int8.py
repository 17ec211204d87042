"""An int8 graph of an encoder is smaller than the float32 one, close to it, and compared with it in quality and time."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from loraprune import cli
from loraprune.errors import LoraPruneError
from loraprune.export.onnx_session import Session
from loraprune.models.loading import from_pretrained
from tests.evaluation.tasks.cases import reviews, word_tokenizer, write_csv
from tests.export.cases import exported

pytestmark = pytest.mark.skipif(find_spec("onnxruntime") is None, reason="the extra export is not installed")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a random classifier of two classes, wide enough for its linear layers to be most of it."""
    folder, tokenizer = tmp_path_factory.mktemp("int8") / "bert", word_tokenizer()
    torch.manual_seed(0)
    names = {0: "bad", 1: "good"}
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, initializer_range=0.1, id2label=names, label2id={name: place for place, name in names.items()},
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_an_int8_graph_is_compared_with_the_float32_graph(classifier: Path, tmp_path: Path) -> None:
    data = write_csv(tmp_path / "reviews.csv", reviews(40))
    values = exported(classifier, tmp_path / "out", "onnx", quantization="int8", data=str(data))
    assert values["quantization"] == "int8"
    found = values["int8"]
    assert found["bytes"]["int8"] < 0.5 * found["bytes"]["float32"]
    assert found["bytes"]["int8"] == (tmp_path / "out" / "model.onnx").stat().st_size
    assert all(seconds > 0 for seconds in found["seconds"].values())
    assert 0 < values["verification"]["exported_vs_int8"] < 0.3
    assert values["verification"]["source_vs_exported"] < 1e-5

    model = from_pretrained(classifier).eval()
    tokenizer, session = word_tokenizer(), Session(tmp_path / "out" / "model.onnx")
    right = {"float32": 0, "int8": 0}
    for row in reviews(40):
        given = tokenizer(row["text"], return_tensors="pt")
        label = int(row["label"] == "good")
        right["float32"] += int(model(**given).logits.argmax()) == label
        right["int8"] += int(session.run({name: each.numpy() for name, each in given.items()})[0].argmax()) == label
    assert found["metric"] == "accuracy"
    assert found["accuracy"] == pytest.approx({name: count / 40 for name, count in right.items()})


def test_data_without_int8_and_int8_of_a_model_that_writes_are_refused(
    classifier: Path, uniform: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_csv(tmp_path / "reviews.csv", reviews(4))
    with pytest.raises(LoraPruneError, match="only an int8 graph is measured"):
        exported(classifier, tmp_path / "out", "onnx", data=str(data))
    with pytest.raises(LoraPruneError, match="onnx has it for encoders"):
        exported(uniform, tmp_path / "out", "onnx", quantization="int8")
    assert not (tmp_path / "out").exists()
    arguments = [
        "export",
        "--model",
        str(classifier),
        "--format",
        "onnx",
        "--quantization",
        "int8",
        "--output",
        str(tmp_path / "out"),
    ]
    assert cli.main(arguments) == 0  # the control
    assert "same class on random inputs" in capsys.readouterr().out
    assert "metric" not in json.loads((tmp_path / "out" / "export.json").read_text())["int8"]
