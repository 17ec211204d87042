"""Two processes score and choose as one does that sees the rows of both, whatever the criterion."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PrinterCallback, Trainer

from loraprune import LoRAPruneCallback
from loraprune.runtime.processes import joined
from loraprune.scoring.scorers import activation, experts, gate, gradient
from loraprune.training.guarded_trainer import GuardedTrainer
from tests.fitting import Rows, adapted, arguments, config, fit
from tests.runtime.distributed.processes import run

STEPS = 6
OWN = "-own"
SAME_BATCH = ("lora", "lora-own", "sketch", "gate", "taylor", "movement", "wanda", "flap")
"""criteria that see the batch as one: those of `gradient` add up micro-batches"""


def trained(folder: Path, name: str, **changes: Any) -> dict[str, Tensor]:
    """Return scores, plan and weights after a short run by a criterion, for OWN with a Trainer that knows nothing of pruning."""
    settings = config(criterion=name.removesuffix(OWN), interval=2, warmup=0.3)
    model, callback = adapted(settings), LoRAPruneCallback(settings, guarded=not name.endswith(OWN))
    args = arguments(folder, steps=STEPS, ddp_find_unused_parameters=False, **changes)
    if callback.guarded:
        trainer: Trainer = GuardedTrainer(
            model=model, args=args, train_dataset=Rows(), callbacks=[callback], guard=callback.guard
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    else:
        fit(model, args, [callback])
    assert callback.pruner is not None
    found = {f"score/{name}": values for name, values in callback.pruner.scores.values.items()}
    found |= {f"kept/{name}": torch.tensor(kept) for name, kept in callback.pruner.plan.kept.items()}
    return found | {f"weight/{name}": p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def in_two(folder: Path, criteria: Mapping[str, dict[str, Any]], *, alone: bool = False) -> None:
    """Train by every criterion in two processes; the first writes what it found. `alone`: sums are not added up."""

    def work(rank: int) -> int:
        if alone:
            for module in (activation, experts, gate, gradient):
                module.add_up = dict  # type: ignore[attr-defined]
        with joined("prune", "cpu"):
            for name, changes in criteria.items():
                found = trained(folder, name, **changes)
                save_file(found, folder / f"{name}.{rank}.safetensors")
        return 0

    ended = run(work, folder)
    assert ended.codes == [0, 0], ended.stderr


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    batches = {name: {"per_device_train_batch_size": 2} for name in SAME_BATCH}
    in_two(folder, batches | {"gradient": {"per_device_train_batch_size": 2}})
    return folder


def one(folder: Path, criterion: str) -> dict[str, Tensor]:
    """Return what one process finds on the same rows a step."""
    if criterion == "gradient":
        return trained(folder, criterion, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    return trained(folder, criterion, per_device_train_batch_size=4)


def differences(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor], part: str) -> float:
    """Return the largest difference, relative to the largest value of its tensor."""
    names = [name for name in mine if name.startswith(part)]
    assert names
    assert all(mine[name].shape == theirs[name].shape for name in names)
    return max(
        ((mine[name] - theirs[name]).abs().max() / mine[name].abs().max().clamp_min(1e-9)).item() for name in names
    )


@pytest.mark.parametrize("criterion", [*SAME_BATCH, "gradient"])
def test_two_processes_are_one_with_the_rows_of_both(criterion: str, two: Path, tmp_path: Path) -> None:
    expected = one(tmp_path, criterion)
    for rank in (0, 1):
        found = load_file(two / f"{criterion}.{rank}.safetensors")
        assert differences(expected, found, "score/") < 1e-3
        assert differences(expected, found, "kept/") == 0
        assert differences(expected, found, "weight/") < 1e-3


def test_without_adding_up_scores_are_those_of_some_of_the_rows(tmp_path: Path) -> None:
    in_two(tmp_path, {"gate": {"per_device_train_batch_size": 2}}, alone=True)
    first = load_file(tmp_path / "gate.0.safetensors")
    assert differences(one(tmp_path, "gate"), first, "score/") > 0.05
