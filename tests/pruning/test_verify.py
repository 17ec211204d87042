"""How much rounding explains, and what it does not."""

from __future__ import annotations

import copy

import pytest
import torch
from peft.tuners.lora import Linear

from loraprune.errors import NumericsError, VerificationError
from loraprune.evaluation.precision import WIDER, difference, logits_of, rounding_noise
from loraprune.evaluation.tasks import probe_of
from loraprune.families import find_groups
from loraprune.merge import checked
from loraprune.models.adapters import config_of
from loraprune.pruning.verify import FLOOR, MARGIN, Checks, check_difference, check_merging, tolerance
from tests.samples import tiny_llama
from tests.tiny import tiny_model, with_lora


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_noise_is_the_difference_from_the_next_wider_precision(dtype: torch.dtype) -> None:
    model = tiny_llama().to(dtype)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    probe = probe_of(model)
    wider = copy.deepcopy(model).to(WIDER[dtype])
    expected = difference(logits_of(wider, probe), logits_of(model, probe))
    assert rounding_noise(model, probe) == pytest.approx(expected, rel=1e-3)
    assert 0 < expected < FLOOR[dtype]
    after = model.state_dict()
    assert all(
        torch.equal(after[name], tensor) and after[name].dtype == tensor.dtype for name, tensor in before.items()
    )


def test_noise_is_not_measured_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loraprune.evaluation.precision.free_memory_bytes", lambda device: 1000)
    model = tiny_llama()
    assert rounding_noise(model, probe_of(model)) is None
    assert tolerance(torch.float32, None) == FLOOR[torch.float32]


def test_what_is_allowed_follows_the_noise_of_the_model() -> None:
    noisy = 10 * FLOOR[torch.float32]
    assert check_difference("both", MARGIN * noisy * 0.99, torch.float32, noise=noisy) > FLOOR[torch.float32]
    for value, noise in ((MARGIN * noisy * 1.01, noisy), (2 * FLOOR[torch.float32], None)):
        with pytest.raises(VerificationError, match="rounding explains"):
            check_difference("both", value, torch.float32, noise=noise)
    with pytest.raises(NumericsError, match="NaN"):
        check_difference("both", float("nan"), torch.float32, noise=noisy)


def test_checks_that_fail_are_noted_and_raised_in_the_end_except_for_nan() -> None:
    checks, one = Checks(torch.float32, 1e-6), torch.ones(3)
    assert checks.compare("first", one, one) == 0
    assert checks.compare("second", one, 2 * one) == 1
    assert checks.compare("third", one, 3 * one) == 2
    with pytest.raises(VerificationError, match=r"second: .*; third: "), checked(checks):
        pass
    assert len(checks.verification(saved_as="llama", dense_noise=None).failed) == 2
    with pytest.raises(NumericsError):
        checks.compare("fourth", one, torch.nan * one)


@pytest.mark.parametrize("variant", ["llama", "gpt2", "bert", "resnet"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merging_is_checked_early_and_leaves_every_weight_as_it_was(variant: str, dtype: torch.dtype) -> None:
    model = with_lora(tiny_model(variant).to(dtype))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    check_merging(model, find_groups(config_of(model)))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_scaling_that_merging_does_not_know_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = with_lora(tiny_model("llama"))
    real = Linear.get_delta_weight
    monkeypatch.setattr(Linear, "get_delta_weight", lambda self, adapter: 1.01 * real(self, adapter))
    with pytest.raises(VerificationError, match="merging LoRA changes its weight"):
        check_merging(model, find_groups(config_of(model)))
