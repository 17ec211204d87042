"""An ordinary step of a run that prunes reads its device as often as one that does not prune.

The model is on torch's meta device, whose tensors have no values: copying one to the CPU, or asking where it is not zero, is an error.
Single values, which `bool` and `float` ask for, are counted.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerState

from loraprune.pruning.pruner import Pruner
from loraprune.scoring.average import RunningScores
from loraprune.training.guard import StepGuard
from tests.fitting import adapted, config
from tests.tiny import tokens

CRITERIA = ("lora", "magnitude", "taylor", "gate", "gradient", "movement", "wanda", "flap")


class Reads(TorchDispatchMode):
    """Counts how often the host asks for a value of the meta device, and answers with one."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            self.count += 1
            return 1
        return function(*args, **(kwargs or {}))


def reads(criterion: str, *, scored: bool, cut: bool) -> int:
    """Return how often a whole step reads the device: forward, backward, the guard and scores."""
    settings = config(criterion=criterion)
    model = adapted(settings).train()
    pruner = Pruner(model, settings)
    if cut:  # scores of some units are gathered by their index then
        step(model, pruner, torch.device("cpu"), scored=True)
        pruner.remove(0.5)
        model.zero_grad()
    model.to("meta")
    with Reads() as found:
        step(model, pruner, torch.device("meta"), scored=scored)
    return found.count


def step(model: Any, pruner: Pruner, device: torch.device, *, scored: bool) -> None:
    guard, ids = StepGuard(), tokens().to(device)
    pruner.listen(scored)
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    guard.see(loss)
    assert guard.passes(model, TrainerState(), 1.0, scored=pruner if scored else None)


@pytest.mark.parametrize("cut", [False, True], ids=["dense", "cut"])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_scoring_reads_nothing_from_the_device(criterion: str, cut: bool) -> None:
    assert reads(criterion, scored=True, cut=cut) == reads(criterion, scored=False, cut=cut)


def test_the_guard_reads_once_and_a_read_while_scoring_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted(config()).to("meta")
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter)
    with Reads() as found:
        assert StepGuard().passes(model, TrainerState(), 1.0)
    assert found.count == 1
    before = reads("lora", scored=True, cut=False)
    update = RunningScores.update

    def waits(self: RunningScores, *given: Any, **options: Any) -> torch.Tensor:
        fine = update(self, *given, **options)
        assert fine  # a read
        return fine

    monkeypatch.setattr(RunningScores, "update", waits)
    assert reads("lora", scored=True, cut=False) == before + 1
    monkeypatch.setattr(RunningScores, "update", lambda self, *given, **options: update(self, *given, **options).cpu())
    with pytest.raises(NotImplementedError, match="meta"):
        reads("lora", scored=True, cut=False)
