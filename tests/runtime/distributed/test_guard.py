"""Several processes judge a step alike, whichever of them sees what is wrong with it, in whole tensors and in parts."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from loraprune.runtime.processes import gather, joined
from loraprune.training.guard import StepGuard
from tests.runtime.distributed.processes import run

STEPS = {
    "nothing": ((1.0, 1.0), 1.0, False),
    "a gradient": ((1.0, 1.0), math.inf, True),
    "both losses and a gradient": ((math.inf, math.inf), math.inf, False),
    "the loss of one and a gradient": ((1.0, math.nan), math.inf, False),
}
"""what is wrong -> losses of both processes, a number in the gradient, whether it is the scale's fault alone"""


def judged(losses: tuple[float, float], number: float, *, rank: int, sharded: bool) -> bool:
    """Return what a process says of a step with a loss scale; in parts, the second process holds the number."""
    model, gradient = nn.Linear(2, 4, bias=False), torch.ones(4, 2)
    gradient[-1, -1] = number
    if sharded:
        mesh = init_device_mesh("cpu", (2,))
        model.weight = nn.Parameter(distribute_tensor(model.weight.data, mesh, [Shard(0)]))
        gradient = distribute_tensor(gradient, mesh, [Shard(0)])
    model.weight.grad = gradient
    guard = StepGuard()
    guard.see(torch.tensor(losses[rank]))
    return guard.overflowed(model, 2.0**16)


@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "in parts"])
def test_processes_agree_on_what_is_the_fault_of_the_loss_scale(sharded: bool, tmp_path: Path) -> None:
    def work(rank: int) -> int:
        with joined("prune", "cpu"):
            found = {
                name: gather(judged(losses, number, rank=rank, sharded=sharded))
                for name, (losses, number, _) in STEPS.items()
            }
        (tmp_path / f"{rank}.json").write_text(json.dumps(found))
        return 0

    ended = run(work, tmp_path)
    assert ended.codes == [0, 0], ended.stderr
    for rank in (0, 1):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found == {name: [fault, fault] for name, (_, _, fault) in STEPS.items()}
