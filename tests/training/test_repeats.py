"""A step is run with a few of the layers that repeat; what it says of all of them is what all of them take."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from loraprune.config.pruning import LoRAPruneConfig
from loraprune.evaluation.tasks import find_task
from loraprune.families import find_groups
from loraprune.models.empty import empty_model
from loraprune.training.footprint import Footprints, Setting, footprints, parts, repeats
from loraprune.training.footprint.repeats import Repeats, Trace, find_repeats
from tests.published import by_the_paper
from tests.tiny import tiny_config

# variant, layers, options, setting
CASES: dict[str, tuple[str, int, dict[str, Any], dict[str, Any]]] = {
    "llama": ("llama", 8, {"criterion": "gate", "compensate": True}, {"teacher": "copy"}),
    "accumulated": ("llama", 8, {"criterion": "wanda"}, {"micro_batches": 4, "teacher": "cache"}),
    "checkpointing": ("llama", 8, {"criterion": "gradient"}, {"checkpointing": True, "quantize": "4bit"}),
    "period of two": ("gemma2", 16, {}, {}),
    "first layer differs": ("qwen2_moe", 10, {}, {"dtype": torch.bfloat16}),
    "one of two lists": ("t5", 10, {}, {}),
    "bert": ("bert", 8, {}, {}),
    "vit": ("vit", 8, {}, {}),
}


def predict(case: str) -> Footprints:
    variant, layers, options, setting = CASES[case]
    config = tiny_config(variant, layers=layers)
    task, groups = find_task(config), find_groups(config)
    half = {group.name: max(1, group.units // 2) for group in groups}
    return footprints(
        empty_model(config, head=task.head), groups, half, task.probe(config, 2, 16),
        options=LoRAPruneConfig(**by_the_paper(**options)), setting=Setting(**{"dtype": torch.float32, **setting}),
    )  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_few_layers_tell_what_all_of_them_take(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    followed: list[Trace | None] = []
    grown = Trace.grown

    def recorded(self: Trace, more: Trace, times: int) -> Trace | None:
        followed.append(grown(self, more, times))
        return followed[-1]

    monkeypatch.setattr(Trace, "grown", recorded)
    short = predict(case)
    assert followed
    assert None not in followed
    monkeypatch.setattr(parts, "find_repeats", lambda *_: None)
    assert predict(case) == short


def test_another_number_of_layers_takes_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    right = predict("bert")
    grown = Trace.grown
    monkeypatch.setattr(Trace, "grown", lambda self, more, times: grown(self, more, times - 1))
    wrong = predict("bert")
    assert wrong.dense.flops < right.dense.flops
    assert wrong.dense.parts["activations"] < right.dense.parts["activations"]


def model_of(layers: int) -> PreTrainedModel:
    return empty_model(tiny_config("llama", layers=layers))


def test_layers_that_differ_are_all_run() -> None:
    model = model_of(10)
    paths = ["model.layers"]
    assert find_repeats(model, paths) == Repeats("model.layers", start=0, period=1, number=10, layers=10)
    wider: Any = model.get_submodule("model.layers.5.mlp.up_proj")
    wider.weight = torch.nn.Parameter(torch.empty(200, 64, device="meta"))
    assert find_repeats(model, paths) is None
    assert find_repeats(model_of(7), paths) is None  # two short lists would take as long


def test_the_model_is_whole_again_after_an_error() -> None:
    model = model_of(10)
    every = model.get_submodule("model.layers")
    found = find_repeats(model, ["model.layers"])
    assert found is not None
    with suppress(ZeroDivisionError), found.shortened(model):
        assert len(model.get_submodule("model.layers")) == repeats.KEPT  # type: ignore[arg-type]
        raise ZeroDivisionError
    assert model.get_submodule("model.layers") is every


def test_what_lives_grows_by_what_a_layer_keeps() -> None:
    few, more = (
        Trace((np.array(live)[:, None],), flops=len(live)) for live in ([0, 8, 16, 24, 0], [0, 8, 16, 24, 32, 8])
    )
    found = few.grown(more, times=5)
    assert found is not None
    assert (found.peak().tolist(), found.flops) == ([24 + 5 * 8], 5 + 5)


def test_steps_with_other_operations_than_those_of_a_layer_show_nothing() -> None:
    few, more = (Trace((np.array(live)[:, None],), flops=1) for live in ([0, 8, 16, 24, 0], [0, 8, 16, 24, 32, 0]))
    assert few.grown(more, times=5) is None  # the last operation frees what depends on the number of layers
