"""Optimisers whose state cannot be cut are refused before any step, or at the first cut; others are left as they were."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Trainer
from transformers.optimization import Adafactor

from loraprune import LoRAPruneCallback
from loraprune.errors import ConfigError
from loraprune.pruning.optimizer_state import cut_state_
from loraprune.training.guard import StepGuard
from loraprune.training.guarded_trainer import GuardedTrainer
from loraprune.training.starts import check_optimizer, try_out
from tests.fitting import Rows, adapted, arguments, config, fit


def test_a_factored_state_is_refused_before_any_step_unless_the_model_keeps_its_shapes(tmp_path: Path) -> None:
    settings = config(interval=1)
    with pytest.raises(ConfigError, match=r"Adafactor: its state 'exp_avg_sq_row'.*shrink=False"):
        fit(adapted(settings), arguments(tmp_path, steps=4, optim="adafactor"), [LoRAPruneCallback(settings)])
    masked = config(interval=1, shrink=False)
    fit(adapted(masked), arguments(tmp_path, steps=4, optim="adafactor"), [LoRAPruneCallback(masked)])


class Averaging(torch.optim.SGD):
    """Keeps a moving average of the weights beside its state, from the start or from the first step."""

    def __init__(self, weights: Any, *, late: bool) -> None:
        super().__init__(weights, lr=1e-3)
        self.average: dict[int, torch.Tensor] = {}
        if not late:
            self.keep()

    def keep(self) -> None:
        for group in self.param_groups:
            self.average |= {id(each): each.detach().clone() for each in group["params"]}

    def step(self, closure: Any = None) -> None:
        super().step(closure)
        self.keep()


class Listing(torch.optim.SGD):
    """Keeps a matrix for each dimension, as SOAP and Shampoo do."""

    def step(self, closure: Any = None) -> None:
        super().step(closure)
        for each in self.param_groups[-1]["params"]:
            self.state[each]["GG"] = [torch.zeros(size, size) for size in each.shape]


class Wrapping(torch.optim.SGD):
    """Has another optimiser do the work."""

    def __init__(self, weights: Any) -> None:
        super().__init__(weights, lr=1e-3)
        self.inner = torch.optim.Adam([dict(group) for group in self.param_groups])


MADE: dict[str, tuple[Callable[[Any], torch.optim.Optimizer], str]] = {
    "list": (lambda weights: Listing(weights, lr=1e-3), "'GG' does not have one number"),
    "average": (lambda weights: Averaging(weights, late=False), "'average' holds copies"),
    "average of the first step": (lambda weights: Averaging(weights, late=True), "'average' holds copies"),
    "wrapper": (Wrapping, "'inner' holds copies"),
}


@pytest.mark.parametrize("name", MADE)
def test_what_lies_outside_one_tensor_for_each_weight_is_refused(name: str) -> None:
    layer, (make, words) = nn.Linear(4, 3), MADE[name]
    with pytest.raises(ConfigError, match=f"{words}.*shrink=False"):
        check_optimizer(make([{"params": [layer.weight]}, {"params": [layer.bias]}]), layer)


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.Rprop, torch.optim.ASGD, torch.optim.NAdam])
def test_looking_at_an_optimiser_moves_no_weight(kind: Any) -> None:
    layer = nn.Linear(4, 3)
    before = layer.weight.detach().clone()
    optimizer = kind(layer.parameters(), lr=1.0)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    check_optimizer(optimizer, layer)
    assert next(iter(try_out(optimizer, torch.device("cpu")).state.values()))  # it took a step
    assert torch.equal(layer.weight, before)
    assert not optimizer.state
    assert optimizer.param_groups[0]["params"][0] is layer.weight
    factored = Adafactor(layer.parameters(), lr=1e-3, relative_step=False)
    with pytest.raises(ConfigError, match="exp_avg_sq_row"):  # the control
        check_optimizer(factored, layer)


def test_a_state_that_no_trial_shows_is_refused_at_the_first_cut() -> None:
    weight = nn.Parameter(torch.randn(3, 4))
    optimizer, kept = torch.optim.SGD([weight], lr=1.0), torch.tensor([0, 2])
    optimizer.state[weight] = {
        "moment": torch.arange(12.0).view(3, 4),
        "count": torch.tensor(1.0),
        "name": "w",
        "factor": [torch.ones(3)],
    }
    with pytest.raises(ConfigError, match="SGD: its state 'factor'"):
        cut_state_(optimizer, weight, weight.shape, 0, kept)
    del optimizer.state[weight]["factor"]
    cut_state_(optimizer, weight, weight.shape, 0, kept)
    assert optimizer.state[weight]["moment"].tolist() == [[0, 1, 2, 3], [8, 9, 10, 11]]


def test_a_model_that_returns_tuples_is_refused_before_any_step(tmp_path: Path) -> None:
    settings = config(interval=1)
    model, callback = adapted(settings), LoRAPruneCallback(settings)
    model.get_base_model().config.return_dict = False
    args = arguments(tmp_path, steps=2)
    trainer = Trainer(model=model, args=args, train_dataset=Rows(), callbacks=[callback])
    with pytest.raises(ConfigError, match=r"return_dict=False: .*set it to True"):
        trainer.train()
    model.get_base_model().config.return_dict = True
    trainer.train()  # the control
    assert callback.pruner is not None


@pytest.mark.parametrize("ratio", [4.0, 1.0])
def test_lora_plus_gives_b_a_higher_rate(ratio: float, tmp_path: Path) -> None:
    model = adapted(config(adapter="dora"))
    trainer = GuardedTrainer(model=model, args=arguments(tmp_path), guard=StepGuard(), lora_plus=ratio)
    names = {id(parameter): name.split(".")[-3] for name, parameter in model.named_parameters()}
    groups = trainer.create_optimizer().param_groups
    rates = {(names[id(each)], group["lr"]) for group in groups for each in group["params"]}
    high = 1e-3 * ratio
    assert rates == {("lora_A", 1e-3), ("lora_B", high), ("lora_magnitude_vector", high)}
    assert sum(len(group["params"]) for group in groups) == sum(each.requires_grad for each in model.parameters())
