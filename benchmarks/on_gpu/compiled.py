"""A masked training step through torch.compile against the same step without, after the graph is made.

Half of the units are masked, dropout is off so that both compute the same, and the layers are fewer than at the 1.1B shape whose
widths they have: a graph of them is made in seconds, and each layer gains alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from helpers import common
from torch import nn

from loraprune.api import attach_lora
from loraprune.config.pruning import LoRAPruneConfig
from loraprune.pruning.pruner import Pruner
from on_gpu.shapes import Chosen, build, config_of, synchronised

LAYERS = 8
TOLERANCE = 2e-2
"""relative, of a loss in bfloat16"""


def masked_model(shape: str, chosen: Chosen) -> nn.Module:
    """Return a random model with LoRA whose first half of the units of every group is masked."""
    base = build(config_of(shape, **{} if chosen.tiny else {"num_hidden_layers": LAYERS}), chosen.device)
    options = LoRAPruneConfig(shrink=False, dropout=0.0)
    model = attach_lora(base, options).train()
    pruner = Pruner(model, options)
    assert pruner.masks is not None
    pruner.masks.set({group.name: range(group.units // 2, group.units) for group in pruner.groups})
    return model


def stepper(model: nn.Module, called: Callable[..., Any], rows: torch.Tensor) -> Callable[[], float]:
    """Return a training step that gives the loss; `called` is the model or what was compiled of it."""
    factors = [each for name, each in model.named_parameters() if "lora_" in name]
    optimiser = torch.optim.AdamW(factors, lr=0.0, fused=True)

    def step() -> float:
        loss = called(input_ids=rows, labels=rows, use_cache=False).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        return float(loss.detach())

    return step


def run(chosen: Chosen) -> Iterator[dict[str, Any]]:
    """Yield both times and losses."""
    shape, batch, length = ("tiny", 2, 32) if chosen.tiny else ("1.1B", 8, 512)
    model = masked_model(shape, chosen)
    rows = torch.randint(config_of(shape).vocab_size, (batch, length), device=chosen.device)
    began = time.perf_counter()
    compiled: Callable[..., Any] = torch.compile(model)
    steps = {"eager": stepper(model, model, rows), "compiled": stepper(model, compiled, rows)}
    losses = {name: [step(), step()][-1] for name, step in steps.items()}
    making = time.perf_counter() - began
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(2 if chosen.tiny else 20):
        for name, step in steps.items():
            start = synchronised(chosen.device)
            step()
            taken[name].append(synchronised(chosen.device) - start)
    apart = abs(losses["compiled"] - losses["eager"]) / abs(losses["eager"])
    seconds = {name: common.spread(each) for name, each in taken.items()}
    yield {
        "definition": __doc__, "shape": shape, "layers": LAYERS, "batch": batch, "length": length, "seconds": seconds,
        "making_seconds": making, "compiled_against_eager": seconds["compiled"]["median"] / seconds["eager"]["median"],
        "losses": losses, "largest_difference": apart, "same": apart < TOLERANCE,
    }  # fmt: skip
    if apart >= TOLERANCE:
        raise SystemExit(f"the compiled step's loss differs by {apart:.1e} of the other's")
