"""`loraprune.prune` and `finetune` do with objects what the commands do with files, and leave the objects alone."""

from __future__ import annotations

import copy
import gc
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from transformers import AutoModelForCausalLM, AutoTokenizer, BertForSequenceClassification

import loraprune
from loraprune import pipeline
from loraprune.config.training import PruneConfig
from loraprune.errors import CheckpointError
from loraprune.models.layerwise.modeling_loraprune import TYPE_PREFIX
from loraprune.reporting.report import Report
from tests.evaluation.tasks.cases import reviews, save_bert
from tests.functions.cases import EXCHANGES, SHORT
from tests.samples import byte_tokenizer, jsonl, save_tiny, sentences, tiny_llama


@pytest.fixture(scope="module")
def by_command(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    """Return the folder and the report of a run on files."""
    root = tmp_path_factory.mktemp("files")
    save_tiny(root / "model")
    (root / "data.jsonl").write_text(jsonl(*EXCHANGES))
    paths = {"model": str(root / "model"), "data": str(root / "data.jsonl"), "output": str(root / "out")}
    return root / "out", pipeline.prune(PruneConfig(**paths, **SHORT))


def test_objects_give_the_folder_that_the_command_writes(by_command: tuple[Path, Report], tmp_path: Path) -> None:
    folder, report = by_command
    model, tokenizer, rows = tiny_llama(), byte_tokenizer(), copy.deepcopy(EXCHANGES)
    weights, settings = copy.deepcopy(model.state_dict()), model.config.to_dict()
    model.train()
    result = loraprune.prune(model, tokenizer=tokenizer, data=rows, **SHORT)
    assert result.save(tmp_path / "small") == tmp_path / "small"

    assert {file.name for file in (tmp_path / "small").iterdir()} == {file.name for file in folder.iterdir()}
    for name in ("model.safetensors", "config.json", "plan.json", "tokenizer.json"):
        assert (tmp_path / "small" / name).read_bytes() == (folder / name).read_bytes(), name
    then, now = (yaml.safe_load((one / "run.yaml").read_text()) for one in (folder, tmp_path / "small"))
    assert {name for name in then if then[name] != now[name]} == {"model", "data", "output"}
    assert (now["model"], now["data"]) == ("LlamaForCausalLM in memory", "list of 40 in memory")
    found, expected = result.report.quality, report.quality
    assert (found.dense, found.pruned, found.counts) == (expected.dense, expected.pruned, expected.counts)
    assert result.values["parameters"] == report.values["parameters"]

    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    assert model.config.to_dict() == settings
    assert model.training
    assert rows == EXCHANGES
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    ids = torch.arange(8)[None]
    assert torch.equal(loaded(input_ids=ids).logits, result.model(input_ids=ids).logits)
    assert loaded.num_parameters() < model.num_parameters()
    with pytest.raises(CheckpointError, match="exists"):
        result.save(tmp_path / "small")
    result.save(tmp_path / "small", overwrite=True)


def test_other_rows_give_another_model(by_command: tuple[Path, Report]) -> None:
    """The control of the test above."""
    folder, _ = by_command
    result = loraprune.prune(tiny_llama(), tokenizer=byte_tokenizer(), data=EXCHANGES[:30], **SHORT)
    assert (result.folder / "model.safetensors").read_bytes() != (folder / "model.safetensors").read_bytes()


def test_a_temporary_folder_lasts_as_long_as_its_result() -> None:
    result = loraprune.finetune(tiny_llama(), tokenizer=byte_tokenizer(), data=Dataset.from_list(EXCHANGES), **tuned())
    folder, model = result.folder, result.model
    assert (folder / "report.json").is_file()
    assert "finetune: 35,488 -> 35,488 parameters, perplexity" in repr(result)
    del result
    gc.collect()
    assert not folder.exists()
    assert torch.isfinite(model(input_ids=torch.arange(8)[None]).logits).all()


def test_names_and_objects_mix_and_an_output_is_a_folder_of_its_own(tmp_path: Path) -> None:
    dense = save_tiny(tmp_path / "model")
    (dense / "tokenizer.json").unlink()
    (dense / "tokenizer_config.json").unlink()
    parts = DatasetDict({"train": Dataset.from_list(EXCHANGES), "test": Dataset.from_dict({"text": sentences(9)})})
    result = loraprune.finetune(
        dense, tokenizer=byte_tokenizer(), data=parts, output=tmp_path / "out", **tuned(rows=8)
    )  # fmt: skip
    assert result.folder == tmp_path / "out"
    assert AutoTokenizer.from_pretrained(result.folder).decode([*b"abc"]) == byte_tokenizer().decode([*b"abc"])
    assert result.values["perplexity"]["protocol"]["split"] == "test"
    again = loraprune.prune(
        result,
        data=sentences(40),
        tokenizer=byte_tokenizer(),
        **SHORT | {"steps": 0, "allocation": "global", "round": 1},
    )
    assert again.report.model == "result in memory"
    assert again.report.verification.saved_as.startswith(TYPE_PREFIX)
    assert loraprune.inspect(again.model).parameters == again.report.parameters[1]
    figure = loraprune.evaluate(again.model, data=sentences(40), tokenizer=byte_tokenizer(), length=32, device="cpu")
    other = loraprune.evaluate(again, data=sentences(40), length=32, device="cpu")
    assert figure.value == pytest.approx(other.value)


def test_labels_of_a_dataset_name_the_classes_of_a_classifier(tmp_path: Path) -> None:
    bert = BertForSequenceClassification.from_pretrained(
        save_bert(tmp_path / "bert", head=False), id2label={0: "bad", 1: "good"}, label2id={"bad": 0, "good": 1}
    )
    names = Features({"text": Value("string"), "label": ClassLabel(names=["bad", "good"])})
    rows = Dataset.from_list(reviews(80)).cast(names)
    result = loraprune.finetune(bert, tokenizer=str(tmp_path / "bert"), data=rows, **tuned())
    assert result.report.task == "sequence-classification"
    assert result.report.metric == "accuracy"
    assert type(result.model) is BertForSequenceClassification


def tuned(**changes: Any) -> dict[str, Any]:
    """Return the options of a short fine-tuning."""
    names = ("steps", "batch", "length", "lr", "rank", "device", "html")
    return {name: SHORT[name] for name in names} | {"steps": 1} | changes
