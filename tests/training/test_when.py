"""All units are removed early where training teaches the dense model little, and after half of the steps where it gains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from loraprune import LoRAPruneCallback
from loraprune.pruning.schedule import Schedule
from loraprune.training import when
from loraprune.training.calibration import CalibrationRows
from loraprune.training.when import When
from tests.fitting import Rows, adapted, arguments, config, fit

STEPS = 30
ONCE: dict[str, Any] = {"criterion": "wanda", "schedule": "oneshot", "interval": None, "warmup": None, "end_to_end": 2}
SCHEDULE = Schedule("oneshot", STEPS, None, 0.0, 0.5)
ROWS = {"input_ids": torch.zeros(16, 4, dtype=torch.long), "labels": torch.zeros(16, 4, dtype=torch.long)}


def removal(folder: Path, *, lr: float, steps: int = STEPS, **options: Any) -> float:
    """Return the step of the removal."""
    settings = config(**ONCE | {"cooldown": None} | options)
    callback = LoRAPruneCallback(settings)
    args = arguments(folder, steps=steps, learning_rate=lr, lr_scheduler_type="constant")
    fit(adapted(settings), args, [callback])
    (found,) = callback.history
    assert found["ratio"] > 0
    return found["step"]


def test_what_training_gains_decides_when_to_remove(tmp_path: Path) -> None:
    assert removal(tmp_path / "gains", lr=3e-2) == STEPS / 2
    assert removal(tmp_path / "stays", lr=1e-9) == STEPS / 10


@pytest.mark.parametrize("options", [{"cooldown": 0.5}, {"steps": 18}, {"compensate": False, "end_to_end": 0}])
def test_a_step_that_is_given_and_a_run_that_cannot_look_keep_half(options: dict[str, Any], tmp_path: Path) -> None:
    assert removal(tmp_path, lr=1e-9, **options) == options.get("steps", STEPS) / 2


def settle(losses: list[float], monkeypatch: pytest.MonkeyPatch) -> tuple[When, Schedule]:
    """Return what is decided after these losses."""
    monkeypatch.setattr(when, "loss_aside", lambda *_: losses.pop(0))
    found = When()
    schedule = found.begin(SCHEDULE, nn.Identity(), ROWS, step=0)
    assert (schedule.look, found.is_settled) == (3, False)
    assert [step for step in range(1, STEPS + 1) if schedule.is_event(step)] == [15]
    assert [schedule.next_event(step) for step in (1, 3, 4)] == [3, 3, 15]
    return found, found.decide(schedule, nn.Identity(), ROWS)


@pytest.mark.parametrize(
    ("losses", "last"), [([2.0, 1.95], 3), ([2.0, 1.85], 15), ([2.0, 2.5], 3), ([2.0, float("nan")], 15)]
)
def test_a_gain_of_a_tenth_of_a_nat_decides(
    losses: list[float], last: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        found, schedule = settle(losses, monkeypatch)
    assert [step for step in range(1, STEPS + 1) if schedule.is_event(step)] == [last]
    assert schedule.progress(last) == 1.0
    assert schedule.progress(last - 1) == 0.0
    assert f"all units are removed after step {last}" in caplog.text
    assert found.is_settled


def test_a_resumed_run_keeps_what_was_measured_and_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(when, "loss_aside", lambda *_: 2.0)
    begun = When()
    begun.begin(SCHEDULE, nn.Identity(), ROWS, step=0)
    monkeypatch.setattr(when, "loss_aside", lambda *_: 1.0)  # the control: measured again, the gain would be 0
    resumed = When(**begun.state_dict())
    schedule = resumed.begin(SCHEDULE, nn.Identity(), ROWS, step=2)
    assert resumed.decide(schedule, nn.Identity(), ROWS).last == 15
    early, _ = settle([2.0, 2.0], monkeypatch)
    assert When(**early.state_dict()).begin(SCHEDULE, nn.Identity(), ROWS, step=9).last == 3
    assert When().begin(SCHEDULE, nn.Identity(), ROWS, step=9) == SCHEDULE  # of a version that did not look


def test_the_rows_to_look_at_are_the_same_each_time_and_leave_the_random_state() -> None:
    class Loader:
        dataset = Rows()

        @staticmethod
        def collate_fn(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
            ids = torch.stack([row["input_ids"] for row in rows])
            return {"input_ids": ids, "labels": torch.where(torch.rand(ids.shape) < 0.5, ids, -100)}

    rows = CalibrationRows(Loader, tokens=64)
    before = torch.get_rng_state()
    one, other = rows.fixed(), rows.fixed()
    assert torch.equal(one["labels"], other["labels"])
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(next(rows)["labels"], one["labels"])  # the control
