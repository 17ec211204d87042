"""What a checkpoint is compared with, and random numbers of every kind of device."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from loraprune.errors import CheckpointError, ConfigError, DataError
from loraprune.training.resume.keeper import Checkpoint
from loraprune.training.resume.randomness import random_state, set_random_state
from loraprune.training.resume.run import check_options, check_same

RUN: dict[str, Any] = {"processes": 2, "sharded": False, "model": "m", "data": "d"}


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"processes": 3}, ConfigError, "made by 2 processes, not 3"),
        ({"sharded": True}, ConfigError, "made without FSDP, not with it"),
        ({"model": "other"}, CheckpointError, "its weights are not those"),
        ({"data": "other"}, DataError, "the rows to train on are not those"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(
    change: dict[str, Any], error: type[Exception], words: str, tmp_path: Path
) -> None:
    checkpoint = Checkpoint(tmp_path, RUN)
    check_same(checkpoint, dict(RUN))
    with pytest.raises(error, match=words):
        check_same(checkpoint, RUN | change)


def test_another_command_is_named_beside_other_options(tmp_path: Path) -> None:
    then = {"job": "prune", "options": {"lr": 0.1}}
    check_options(dict(then), then, tmp_path)
    with pytest.raises(ConfigError, match=r"finetune \(was prune\), --lr 0\.2 \(was 0\.1\), --sampled None \(was 3\)"):
        check_options(
            {"job": "finetune", "options": {"lr": 0.2}},
            {"job": "prune", "options": {"lr": 0.1, "sampled": 3}},
            tmp_path,
        )


def test_random_numbers_go_on_on_every_device(monkeypatch: pytest.MonkeyPatch) -> None:
    held = {"cuda": torch.tensor([1, 2]), "mps": torch.tensor([3])}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: [held["cuda"]])
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: held["mps"])
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", lambda states: held.update(cuda=states[0]))
    monkeypatch.setattr(torch.mps, "set_rng_state", lambda state: held.update(mps=state))

    def draw() -> tuple[float, ...]:
        return float(torch.rand(())), random.random(), float(np.random.rand())

    state, due = random_state(), draw()
    assert draw() != due
    held.update(cuda=torch.zeros(2), mps=torch.zeros(1))
    set_random_state(state)
    assert draw() == due
    assert (held["cuda"].tolist(), held["mps"].tolist()) == ([1, 2], [3])
