"""What is wrong with an argument is said in the words of arguments, before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from torch import nn

import loraprune
from loraprune.config.commands import EvaluateConfig
from loraprune.config.in_python import in_python
from loraprune.config.training import PruneConfig
from loraprune.errors import ConfigError, LoraPruneError
from loraprune.runtime import launch
from tests.functions.cases import SHORT
from tests.samples import byte_tokenizer, save_tiny, sentences, tiny_llama

TEXTS = sentences(30)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ratio": 1.5}, "ratio=1.5: a fraction in [0, 1) is needed, such as 0.5 or 50%"),
        ({"ratio": "a lot"}, "ratio='a lot': a fraction or a percentage, such as 0.2 or 20% is needed"),
        ({"ratoi": 0.5}, "unknown argument 'ratoi' (did you mean 'ratio'?)"),
        ({"heads": 2, "heads_ratio": 0.5, "ratio": 0.5}, "heads=2 heads_ratio=0.5: give one of the two"),
        ({"device": "gpu"}, "device='gpu' (did you mean 'cpu'?): one of auto, cpu, cuda, mps is needed"),
        ({"epochs": None}, "epochs=None: a value is needed"),
        ({"local": 0, "local_all": True}, "local_all=True local=0: no block is trained without steps; give local=200"),
        ({"patience": 2}, "patience=2: it counts evaluations during training; give eval_every too"),
        ({"output": "."}, "output='.' exists: choose another folder, or give overwrite=True"),
        ({"data": []}, "data: the list is empty"),
        ({"data": [3, 4]}, "data (list of 2 in memory), item 1: a int where an object is needed"),
        ({"data": [{"text": b"x"}]}, "data (list of 1 in memory), item 1: it cannot be written as JSON"),
        ({"data": [{"txt": "x"}]}, "data (list of 1 in memory): columns found: txt"),
        ({"data": "nowhere.txt"}, "data 'nowhere.txt': no such file or folder"),
        ({"data": iter(TEXTS)}, "data: a list_iterator, where a Dataset, a list of texts or dicts, or a name is needed"),
        ({"data": ["model", "model"]}, "data: the list holds names of files ('model')"),
        ({"eval": TEXTS, "data": TEXTS}, "all of it is trained on as part of data"),
        ({"tokenizer": None}, "tokenizer is missing"),
        ({"tokenizer": 3}, "tokenizer: a int, where a tokenizer"),
        ({"resume": True}, "output is missing: name the folder that resume=True continues from"),
        ({"model": nn.Linear(2, 2)}, "model: a Linear, where a transformers model, a folder or a hub id is needed"),
        ({"model": "nowhere/at/all"}, "model='nowhere/at/all': no such folder"),
    ],
)  # fmt: skip
def test_an_argument_that_is_wrong_is_named(
    changes: dict[str, Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    given: dict[str, Any] = {"tokenizer": byte_tokenizer(), "data": TEXTS, **SHORT}
    with pytest.raises(LoraPruneError) as caught:
        loraprune.prune(**{"model": tiny_llama(), **given, **changes})
    assert words in str(caught.value)
    assert "--" not in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ratio": 1.5}, "ratio=1.5: a fraction in [0, 1) is needed"),
        ({"end_to_end": -1}, "end_to_end=-1: 0 or a number of steps is needed"),
        ({"depth": True, "allocation": "uniform"}, "depth=True: give allocation='measured' or balanced"),
        (
            {"sparsity": "2:4", "local": 3, "local_all": True},
            "sparsity='2:4' local_all=True: local_all=True is about units",
        ),
    ],
)
def test_the_configuration_of_the_callback_speaks_of_arguments(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loraprune.LoRAPruneConfig(**options)
    assert words in str(caught.value)
    assert "--" not in str(caught.value)
    with pytest.raises(ConfigError, match="--"):  # the control: the options of a command
        PruneConfig(model="demo", data="stdlib", output="small", **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ratio": None}, "ratio=None: a value is needed"),
        ({"schedule": "cosine"}, "schedule='cosine': one of auto, cubic, linear, oneshot is needed"),
        ({"round": 32.5}, "round=32.5: "),
    ],
)
def test_a_value_of_a_wrong_type_is_refused_where_it_is_written(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loraprune.LoRAPruneConfig(**options)
    assert str(caught.value).startswith(words)
    assert loraprune.LoRAPruneConfig(ratio="20%", schedule="cubic", round=32).ratio == 0.2  # type: ignore[arg-type]  # the control


def test_everything_wrong_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        loraprune.prune("demo", data="stdlib", ratio=2.0, lr=-1.0)
    assert {problem.partition(":")[0] for problem in caught.value.args} == {"ratio=2.0", "lr=-1.0"}


def test_a_model_that_cannot_be_written_whole_is_refused() -> None:
    adapted = get_peft_model(tiny_llama(), LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(ConfigError, match="model: a PeftModel, where"):
        loraprune.inspect(adapted)
    with pytest.raises(ConfigError, match="model: it carries an adapter; merge it first"):
        loraprune.inspect(adapted.get_base_model())
    quantised = tiny_llama()
    quantised.config.quantization_config = {"load_in_8bit": True}
    with pytest.raises(ConfigError, match="model: its weights are quantised already"):
        loraprune.plan(quantised)
    assert loraprune.plan(tiny_llama()).ratio == pytest.approx(0.5, abs=0.05)  # the control


def test_objects_of_one_process_of_several_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_tiny(tmp_path / "model")
    monkeypatch.setattr(launch, "count", lambda: 2)
    with pytest.raises(ConfigError, match="model: an object of one of 2 processes"):
        loraprune.inspect(tiny_llama())
    assert loraprune.inspect(folder).family == "llama"  # the control


def test_a_configuration_in_place_of_a_model_is_told_where_it_belongs() -> None:
    config: Any = PruneConfig(model="demo", data="stdlib", output="nowhere")
    with pytest.raises(ConfigError, match=r"model: a PruneConfig, which the functions of loraprune\.pipeline"):
        loraprune.prune(config, data=TEXTS)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("--batch 8 --accumulate 16", "batch=8 accumulate=16"),
        ("leave --ratio out", "leave ratio out"),
        ("leave --overwrite out", "leave overwrite out"),
        ("give --resume to go on", "give resume=True to go on"),
        ("it needs --shrink false", "it needs shrink=False"),
        ("with --allocation balanced: all", "with allocation='balanced': all"),
        ("see `loraprune prune --help`", "see `loraprune prune --help`"),
        ("needs --eval-every.", "needs eval_every."),
        ("a -- b, well-known", "a -- b, well-known"),
    ],
)
def test_flags_become_arguments_and_commands_stay(text: str, expected: str) -> None:
    assert in_python(text, {}, PruneConfig) == expected


def test_values_are_shown_as_python_writes_them() -> None:
    values = {"tasks": "piqa,", "length": [1, 64], "record": True}
    text = "--tasks piqa,: empty; --length 1: short; --record true"
    assert in_python(text, values, EvaluateConfig) == "tasks='piqa,': empty; length=1: short; record=True"
