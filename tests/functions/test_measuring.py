"""`inspect`, `plan`, `evaluate`, `benchmark`, `compare` and `export` take objects, and give the figures of the commands."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from datasets import Dataset
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

import loraprune
from loraprune.commands.evaluate import evaluate
from loraprune.commands.inspect import inspect
from loraprune.commands.plan import predict
from loraprune.config.commands import EvaluateConfig, InspectConfig, PlanConfig
from tests.data.images.conftest import save_classifier
from tests.samples import byte_tokenizer, jsonl, save_tiny, sentences, tiny_llama

TEXTS = sentences(40)


def without_name(values: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in values.items() if name not in ("model", "machine_memory_bytes")}


def test_a_model_in_memory_is_described_as_its_folder_is(tmp_path: Path) -> None:
    folder, model = save_tiny(tmp_path / "model"), tiny_llama()
    found = loraprune.inspect(model)
    assert without_name(dict(found.values)) == without_name(inspect(InspectConfig(model=str(folder))).values)
    assert (found.family, found.layers, found.parameters) == ("llama", 2, model.num_parameters())
    planned = loraprune.plan(model, ratio=0.25, batch=2, length=16)
    options = PlanConfig(model=str(folder), ratio=0.25, batch=2, length=16)
    assert without_name(dict(planned.values)) == without_name(predict(options))
    assert planned.parameters.pruned < planned.parameters.dense == model.num_parameters()
    assert loraprune.plan(model, ratio=0.5).parameters.pruned < planned.parameters.pruned  # the control


def test_a_model_that_is_known_by_name_needs_no_files() -> None:
    assert loraprune.inspect("llama-7b").parameters == 6_738_415_616


def test_texts_in_memory_give_the_figure_of_their_file(tmp_path: Path) -> None:
    folder, model = save_tiny(tmp_path / "model"), tiny_llama(hidden_size=48)
    (tmp_path / "texts.jsonl").write_text(jsonl(*({"text": text} for text in TEXTS)))
    options = EvaluateConfig(model=str(folder), data=str(tmp_path / "texts.jsonl"), length=32, device="cpu")
    by_file = evaluate(options).values["measurements"][0]["models"][str(folder)]["perplexity"]
    found = loraprune.evaluate(
        tiny_llama(), tokenizer=byte_tokenizer(), against=model, length=32, device="cpu",
        data={"all": TEXTS, "few": Dataset.from_dict({"text": TEXTS[:20]})},
    )  # fmt: skip
    assert found.metric == "perplexity"
    assert found.value == by_file
    assert [(one.model, one.data) for one in found.figures] == [
        ("LlamaForCausalLM in memory (2)", "all"), ("LlamaForCausalLM in memory", "all"),
        ("LlamaForCausalLM in memory (2)", "few"), ("LlamaForCausalLM in memory", "few"),
    ]  # fmt: skip
    assert len({one.value for one in found.figures}) == 4  # the control: other models and texts, other figures


def test_models_are_timed_and_compared_by_the_names_they_are_given() -> None:
    dense, wide = tiny_llama(), tiny_llama(intermediate_size=128)
    speed = loraprune.benchmark(wide, against=dense, batches=[1, 2], length=16, tokens=2, repeats=1, device="cpu")
    assert list(speed.parameters.values()) == [dense.num_parameters(), wide.num_parameters()]
    assert all(set(batches) == {1, 2} for batches in speed.prefill_seconds.values())
    compared = loraprune.compare(
        {"dense": dense, "wide": wide},
        data=TEXTS,
        tokenizer=byte_tokenizer(),
        length=32,
        tokens=2,
        repeats=1,
        device="cpu",
    )
    assert list(compared.quality) == list(compared.speed.parameters) == ["dense", "wide"]
    assert compared.quality["dense"] != compared.quality["wide"]


@pytest.mark.skipif(find_spec("gguf") is None, reason="gguf is not installed")
def test_a_model_in_memory_is_exported_with_its_tokenizer(tmp_path: Path) -> None:
    found = loraprune.export(
        tiny_llama(), tokenizer=save_tiny(tmp_path / "model"), output=tmp_path / "safe", format="safetensors"
    )
    assert (found.folder / "tokenizer.json").is_file()
    assert found.format == "safetensors"
    assert found.verification


def test_images_in_memory_are_judged_with_a_processor_in_memory(tmp_path: Path) -> None:
    folder = save_classifier(tmp_path / "model")
    model, processor = (
        AutoModelForImageClassification.from_pretrained(folder),
        AutoImageProcessor.from_pretrained(folder),
    )
    names = [str(number) for number in range(model.config.num_labels)]
    rows = Dataset.from_list([
        {"image": Image.new("RGB", (20, 24), (40 * place, 200 - 40 * place, 90)), "label": names[place % len(names)]}
        for place in range(10)
    ])  # fmt: skip
    found = loraprune.evaluate(model, tokenizer=processor, data=rows, device="cpu")
    by_name = loraprune.evaluate(folder, data=rows, device="cpu")
    assert found.metric == "accuracy"
    assert found.value == by_name.value
