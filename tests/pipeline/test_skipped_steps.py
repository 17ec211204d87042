"""A step with NaN or infinity in it changes nothing, is told and counted; too many end the run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from loraprune import pipeline
from loraprune.errors import NumericsError
from loraprune.pruning.pruner import Pruner
from loraprune.pruning.sparsity.scores import GONE, WeightScores
from loraprune.scoring.scorers.gate import GateScorer
from loraprune.training.guarded_trainer import GuardedTrainer
from tests.pipeline.cases import prune_config, read_report


def poison(monkeypatch: pytest.MonkeyPatch, value: float, *steps: int) -> None:
    """Let the loss of some steps be no number."""
    real = GuardedTrainer.compute_loss

    def poisoned(self: GuardedTrainer, *arguments: Any, **options: Any) -> Tensor:
        loss = real(self, *arguments, **options)
        return loss * value if self.state.global_step + 1 in steps else loss

    monkeypatch.setattr(GuardedTrainer, "compute_loss", poisoned)


def watch(monkeypatch: pytest.MonkeyPatch, look: Callable[[nn.Module, Pruner], Any]) -> list[Any]:
    """Return what `look` sees after every step's scoring, and before."""
    seen: list[Any] = []
    real = pipeline.LoRAPruneCallback.on_step_end

    def spy(self: Any, *arguments: Any, **kwargs: Any) -> None:
        seen.append(look(kwargs["model"], self.pruner))
        real(self, *arguments, **kwargs)

    monkeypatch.setattr(pipeline.LoRAPruneCallback, "on_step_end", spy)
    return seen


@pytest.mark.parametrize(
    ("criterion", "value"), [("lora", torch.nan), ("gate", torch.inf), ("gradient", torch.nan), ("wanda", torch.inf)]
)
def test_a_skipped_step_changes_neither_weights_nor_scores(
    criterion: str, value: float, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    poison(monkeypatch, value, 3)

    def look(model: nn.Module, pruner: Pruner) -> tuple[list[Tensor], list[Tensor]]:
        factors = [p.detach().clone() for p in model.parameters() if p.requires_grad]
        return factors, [values.clone() for values in pruner.scores.values.values()]

    seen = watch(monkeypatch, look)
    pipeline.prune(prune_config(inputs, tmp_path / "out", steps=6, warmup=0.6, cooldown=0.0, criterion=criterion))
    for before, after in zip(seen[1], seen[2], strict=True):
        assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    for part in (0, 1):  # the control: other steps change both
        assert not all(torch.equal(one, other) for one, other in zip(seen[0][part], seen[1][part], strict=True))
    assert "step 3 was skipped (1 so far)" in caplog.text
    report = read_report(tmp_path / "out")
    assert [entry["step"] for entry in report["skipped_steps"]] == [3]
    assert [point["step"] for point in report["curve"]] == [1, 2, 3, 4, 5, 6]
    assert all(3 < point["loss"] < 7 for point in report["curve"])


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_gradient_that_is_no_number_skips_the_step_though_the_loss_is_one(
    value: float, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = GuardedTrainer.compute_loss

    def poisoned(self: GuardedTrainer, *arguments: Any, **options: Any) -> Tensor:
        loss: Tensor = real(self, *arguments, **options)
        if self.state.global_step == 2 and loss.requires_grad:
            loss.register_hook(lambda gradient: gradient * value)
        return loss

    monkeypatch.setattr(GuardedTrainer, "compute_loss", poisoned)
    pipeline.prune(prune_config(inputs, tmp_path / "out", steps=6))
    report = read_report(tmp_path / "out")
    assert report["skipped_steps"] == [{"step": 3, "reason": "a gradient is NaN or infinite"}]
    assert all(3 < point["loss"] < 7 for point in report["curve"])


def test_a_score_that_is_no_number_skips_the_step(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = GateScorer.collect, []

    def collect(self: GateScorer, *arguments: Any) -> Any:
        scores = dict(real(self, *arguments))
        calls.append(1)
        if len(calls) == 2:
            name = next(iter(scores))
            scores[name] = scores[name] * torch.nan
        return scores

    monkeypatch.setattr(GateScorer, "collect", collect)
    pipeline.prune(prune_config(inputs, tmp_path / "out", steps=6, criterion="gate"))
    skipped = read_report(tmp_path / "out")["skipped_steps"]
    assert [entry["step"] for entry in skipped] == [2]
    assert "a score of" in skipped[0]["reason"]


def test_too_many_end_the_run_with_a_checkpoint_and_a_reason(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    poison(monkeypatch, torch.nan, *range(3, 20))
    with pytest.raises(
        NumericsError, match=r"step 7: 5 steps were skipped, the last one because the loss is nan: lower --lr"
    ):
        pipeline.prune(prune_config(inputs, tmp_path / "out", steps=20))
    assert [path.name for path in tmp_path.iterdir()] == ["out.partial"]
    assert [path.name for path in (tmp_path / "out.partial").glob("step-*")] == ["step-00000007"]
    assert "step-00000007 is kept" in caplog.text


def test_a_run_of_skipped_steps_alone_removes_nothing(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, torch.nan, 1, 2, 3)
    with pytest.raises(NumericsError, match="they cannot be ranked"):
        pipeline.prune(prune_config(inputs, tmp_path / "out", steps=3))
    assert not (tmp_path / "out").exists()


def test_scores_of_single_weights_take_in_no_infinity() -> None:
    scores = WeightScores({"a": (1, 3)}, decay=0.5, device=torch.device("cpu"))
    scores.update("a", 0, torch.tensor([[1.0, 2.0, 4.0]]))
    scores.values["a"][0, 2] = GONE
    assert scores.update("a", 0, torch.tensor([[torch.inf, 4.0, 4.0]])) == torch.inf
    assert scores.values["a"].tolist() == [[0.5, 2.5, GONE]]
