"""A step is scored only if the moving average still remembers it at the next removal, unless all are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from loraprune import LoRAPruneCallback
from loraprune.pruning.pruner import Pruner
from loraprune.scoring.scorers.activation import ActivationScorer
from tests.fitting import adapted, arguments, config, fit

STEPS, REMOVAL = 20, 10
DECAY = 0.5  # 0.5 ** 6 is more than 1 %, and 0.5 ** 7 is less
REMEMBERED = list(range(REMOVAL - 6, REMOVAL + 1))


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps that were scored, and for 0 a call that gathered something in another one."""
    steps: list[int] = []
    score, listen, collect = Pruner.score, Pruner.listen, ActivationScorer.collect
    turn = {"step": 0, "on": True}

    def count(self: Pruner, on: bool) -> None:
        turn.update(step=turn["step"] + 1, on=on)
        listen(self, on)

    def noted(self: Pruner, finite: torch.Tensor) -> torch.Tensor:
        steps.append(turn["step"])
        return score(self, finite)

    def gathered(self: ActivationScorer, *given: Any) -> Mapping[str, torch.Tensor]:
        assert turn["on"]
        return collect(self, *given)

    monkeypatch.setattr(Pruner, "listen", count)
    monkeypatch.setattr(Pruner, "score", noted)
    monkeypatch.setattr(ActivationScorer, "collect", gathered)
    return steps


def kept(folder: Path, **options: Any) -> Mapping[str, tuple[int, ...]]:
    settings = config(
        criterion=options.pop("criterion", "wanda"), schedule="oneshot", warmup=0.0, cooldown=0.5, interval=None,
        decay=DECAY, end_to_end=0, **options,
    )  # fmt: skip
    callback = LoRAPruneCallback(settings)
    fit(adapted(settings), arguments(folder, steps=STEPS), [callback])
    assert callback.pruner is not None
    return callback.pruner.plan.kept


@pytest.mark.parametrize("criterion", ["wanda", "gate", "gradient", "lora"])
def test_only_the_steps_that_count_are_scored(criterion: str, scored: list[int], tmp_path: Path) -> None:
    found = kept(tmp_path, criterion=criterion, score_steps="remembered")
    assert scored == REMEMBERED
    scored.clear()
    every = kept(tmp_path, criterion=criterion, score_steps="all")
    assert len(scored) == REMOVAL  # the control
    same = sum(len(set(units) & set(every[name])) for name, units in found.items())
    assert same >= 0.95 * sum(map(len, found.values()))


def test_hooks_rest_in_the_other_steps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[bool] = []
    listening: list[bool] = []
    square = torch.Tensor.square

    def counted(self: torch.Tensor) -> torch.Tensor:
        calls.append(listening[-1] if listening else True)
        return square(self)

    listen = ActivationScorer.listen
    monkeypatch.setattr(ActivationScorer, "listen", lambda self, on: (listening.append(on), listen(self, on))[1])
    monkeypatch.setattr(torch.Tensor, "square", counted)
    kept(tmp_path, score_steps="remembered", compensate=False)
    assert calls
    assert all(calls)
    assert listening.count(False) == STEPS - len(REMEMBERED) - (STEPS - REMOVAL)
