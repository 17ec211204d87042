"""A loss scale, as fp16 needs it, changes neither scores nor training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PrinterCallback, Trainer

from loraprune import LoRAPruneCallback
from loraprune.models.adapters import merge_lora
from loraprune.training import callback
from tests.fitting import Rows, adapted, arguments, config


def run(
    folder: Path, scale: float | None, **settings: Any
) -> tuple[LoRAPruneCallback, dict[str, torch.Tensor], Trainer]:
    """Prune with a loss scale on the CPU, where accelerate makes none by itself."""
    chosen = config(**settings)
    model, watcher = adapted(chosen), LoRAPruneCallback(chosen)
    trainer = Trainer(model=model, args=arguments(folder, steps=12), train_dataset=Rows(), callbacks=[watcher])
    trainer.remove_callback(PrinterCallback)
    if scale is not None:
        trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale, backoff_factor=2.0**-12)
    trainer.train()
    return watcher, dict(merge_lora(model).state_dict()), trainer


def test_scores_and_weights_are_those_without_a_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, weights, _ = run(tmp_path, None)
    scaled, same, _ = run(tmp_path, 2.0**12)
    assert plain.pruner is not None
    assert scaled.pruner is not None
    assert scaled.pruner.plan == plain.pruner.plan
    for name, scores in plain.pruner.scores.values.items():
        assert torch.allclose(scores, scaled.pruner.scores.values[name], rtol=1e-5), name
    assert weights
    assert all(torch.allclose(weights[name], same[name], atol=1e-6) for name in weights)
    monkeypatch.setattr(callback, "take_scale_out", lambda optimizer: 1.0)
    wrong, _, _ = run(tmp_path, 2.0**12)
    assert wrong.pruner is not None
    assert any(
        not torch.allclose(scores, wrong.pruner.scores.values[name], rtol=1e-1)
        for name, scores in plain.pruner.scores.values.items()
    )


def test_a_scale_that_is_too_large_is_lowered_and_not_counted(tmp_path: Path) -> None:
    watcher, _, trainer = run(tmp_path, 2.0**126, warmup=0.5)
    assert watcher.guard.skipped == []
    scaler = trainer.accelerator.scaler
    assert scaler is not None
    assert 1 < scaler.get_scale() < 2.0**126
    assert watcher.pruner is not None
    assert watcher.pruner.is_done
