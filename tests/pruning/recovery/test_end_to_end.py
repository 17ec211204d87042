"""The projections learn the outputs of the model before a removal, on rows of which some are kept aside."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from loraprune import LoRAPruneCallback
from loraprune.errors import NumericsError
from loraprune.models.adapters import linear_paths, trained_factors
from loraprune.plan import Plan
from loraprune.pruning.pruner import Pruner
from loraprune.pruning.recovery import changes, end_to_end, recover
from loraprune.pruning.recovery.descent import Descent
from loraprune.pruning.recovery.end_to_end import NEAR, PASSES, Outputs, default_steps, learn_outputs_
from tests.fitting import adapted, arguments, config, fit
from tests.tiny import EVERY, tiny_model, tokens, with_lora

IDS = tokens(64, 16, seed=3)
ROWS = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "labels": IDS}
FAMILIES = ("llama", "gpt2", "t5", "bert", "vit", "resnet", "mixtral")


def halved(pruner: Pruner) -> Plan:
    kept = {name: units[: max(1, len(units) // 2)] for name, units in pruner.plan.kept.items()}
    return Plan(pruner.plan.units, kept)


def removed(name: str, steps: int | None = 60, **options: Any) -> Pruner:
    pruner = Pruner(with_lora(tiny_model(name)), config(end_to_end=steps, kinds="all", round=1, **options))
    inputs = ROWS if name in ("llama", "mixtral") else EVERY[name].inputs()
    rows = {name: values for name, values in inputs.items() if isinstance(values, torch.Tensor)}
    pruner.apply(halved(pruner), rows=rows)
    return pruner


@pytest.mark.parametrize("name", FAMILIES)
def test_outputs_on_rows_aside_come_nearer(name: str) -> None:
    (found,) = removed(name, criterion="magnitude").recoveries
    assert list(found.errors) == ["before", "removed", "end_to_end"]
    assert found.errors["before"] == pytest.approx(0, abs=1e-3)
    assert found.undone == []
    # Of Mixtral only attention learns: its experts are no projections of their own.
    assert found.errors["end_to_end"] < (0.98 if name == "mixtral" else 0.95) * found.errors["removed"]


def state(pruner: Pruner) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in pruner.model.state_dict().items()}


def test_projections_change_and_masks_learn_what_cuts_learn() -> None:
    cut, masked, without = removed("llama"), removed("llama", shrink=False), removed("llama", steps=0)
    masked.finish()
    found, expected, former = state(cut), state(masked), state(without)
    projections = {f"base_model.model.{path}.base_layer.weight" for path in linear_paths(cut.groups)}
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-5)
        assert torch.equal(tensor, former[name]) == (name not in projections), name


def test_factors_of_lora_learn_where_the_weights_are_no_matrices() -> None:
    found, former = state(removed("resnet")), state(removed("resnet", steps=0))
    changed = {name for name, tensor in found.items() if not torch.equal(tensor, former[name])}
    assert changed
    assert all("lora_" in name for name in changed)


def test_a_change_has_a_low_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "RANK", 2)
    found, former = state(removed("llama")), state(removed("llama", steps=0))
    name = "base_model.model.model.layers.0.mlp.down_proj.base_layer.weight"
    sizes = torch.linalg.svdvals(found[name] - former[name])
    assert sizes[1] > 0
    assert sizes[2] < 1e-3 * sizes[0]  # the weights are in float32


def test_steps_that_lead_away_are_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    step = Descent.step
    monkeypatch.setattr(
        Descent, "step", lambda self, gradients: step(self, [None if one is None else -one for one in gradients])
    )
    pruner = removed("llama")
    (found,) = pruner.recoveries
    assert found.undone == ["end_to_end"]
    assert found.errors["end_to_end"] == found.errors["removed"]
    restored, former = state(pruner), state(removed("llama", steps=0))
    assert all(torch.equal(tensor, former[name]) for name, tensor in restored.items())


def test_passes_over_the_rows_are_the_default() -> None:
    outputs = Outputs(with_lora(tiny_model("llama")), (), ROWS)
    one = math.ceil(56 / (256 // 16))
    assert default_steps(outputs) == PASSES * one
    assert default_steps(outputs, error=0.9 * NEAR, is_tuned=True) == one
    assert default_steps(outputs, error=0.9 * NEAR) == PASSES * one  # the controls: no training follows,
    assert default_steps(outputs, error=1.1 * NEAR, is_tuned=True) == PASSES * one  # or the outputs are far away,
    assert outputs.aside.sum() == 8
    outputs.by_prediction = False
    assert default_steps(outputs, error=0.9 * NEAR, is_tuned=True) == PASSES * one  # or are no predictions


@pytest.mark.parametrize(("cooldown", "near", "passes"), [(0.5, 99.0, 1), (0.5, 0.0, PASSES), (0.0, 99.0, PASSES)])
def test_a_model_near_by_that_is_tuned_gets_one_pass(
    cooldown: float, near: float, passes: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[int] = []
    monkeypatch.setattr(end_to_end, "NEAR", near)
    monkeypatch.setattr(recover, "learn_outputs_", lambda *_, steps, seed: seen.append(steps))
    settings = config(schedule="oneshot", cooldown=cooldown, end_to_end=None)
    fit(adapted(settings), arguments(tmp_path, steps=4), [LoRAPruneCallback(settings)])
    monkeypatch.setattr(end_to_end, "PASSES", 1)
    fit(adapted(settings), arguments(tmp_path, steps=4), [LoRAPruneCallback(settings)])
    assert seen[0] == passes * seen[1]


def test_padding_does_not_count() -> None:
    model = with_lora(tiny_model("llama"))
    padded = {**ROWS, "attention_mask": ROWS["attention_mask"].clone()}
    padded["attention_mask"][:, 10:] = 0
    outputs, places = Outputs(model, (), padded), torch.arange(4)
    logits, _ = outputs.run(model, places)
    changed, everywhere = logits.detach().clone(), logits.detach().clone()
    changed[:, 10:] = 0
    everywhere[:, :5] = 0
    assert outputs.error(changed, places).item() == pytest.approx(0, abs=1e-5)
    assert outputs.error(everywhere, places).item() > 1e-3  # the control: places that hold a token


def test_outputs_that_are_not_finite_end_the_run() -> None:
    model = with_lora(tiny_model("llama"))
    outputs = Outputs(model, (), ROWS)
    with torch.no_grad():
        next(iter(trained_factors(model))).fill_(math.nan)
    with pytest.raises(NumericsError, match="NaN or infinite"):
        learn_outputs_(model, {}, outputs, steps=2, seed=0)
