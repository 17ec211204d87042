"""What scoring and removal take of the CPU on top of the arithmetic: a GPU waits for it. A minute, in one thread.

    python benchmarks/host_time.py

Processor time of this process, so that others on the machine matter little. Scoring: 224 projections of 32 layers so small that their
arithmetic is nothing, with the moving average; and the operators that torch carries out for it, which on a GPU are launches. Removal:
the unit counts of LLaMA-7B with narrow weights, from the ranking to the cut of weights, adapters and AdamW's state, sixteen times.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from helpers import common
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

from loraprune import LoRAPruneConfig, attach_lora
from loraprune.pruning.pruner import Pruner

TINY = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
"""widths that only host time is left of"""
UNITS = {"hidden_size": 32, "intermediate_size": 11008, "num_attention_heads": 32, "num_key_value_heads": 32}
"""LLaMA-7B's units, in layers of 32 channels"""
LAYERS, REMOVALS = 32, 16


class Operators(TorchDispatchMode):
    """Counts the operators that torch carries out."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return function(*args, **(kwargs or {}))


def build(shape: dict[str, int]) -> tuple[nn.Module, Pruner, torch.optim.Optimizer]:
    """Return an adapted model, its pruner, and AdamW for its adapters."""
    torch.manual_seed(0)
    settings = LoRAPruneConfig(ratio=0.5, criterion="lora", allocation="uniform")
    model = attach_lora(LlamaForCausalLM(LlamaConfig(**shape, num_hidden_layers=LAYERS, vocab_size=32)), settings)
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=1e-4)
    return model, Pruner(model, settings), optimizer


def give_gradients(model: nn.Module) -> None:
    """Give every adapter a random gradient."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn_like(parameter)


def scoring(repeats: int) -> dict[str, Any]:
    """Return the milliseconds and the operators of a scored step."""
    model, pruner, _ = build(TINY)
    taken = []
    for _ in range(repeats + 1):
        give_gradients(model)
        began = time.process_time()
        pruner.score()
        taken.append(1e3 * (time.process_time() - began))
    with Operators() as counted:
        pruner.score()
    return {"projections": 7 * LAYERS, "milliseconds": common.spread(taken[1:]), "operators": counted.count}


def removal() -> dict[str, Any]:
    """Return the seconds of the removals of a run to 50 %."""
    model, pruner, optimizer = build(UNITS)
    taken = []
    for turn in range(1, REMOVALS + 1):
        give_gradients(model)
        pruner.score()
        optimizer.step()
        began = time.process_time()
        pruner.remove(turn / REMOVALS, optimizer=optimizer)
        taken.append(time.process_time() - began)
    units = sum(pruner.plan.units.values())
    return {"removals": REMOVALS, "units": units, "seconds": common.spread(taken), "seconds_in_all": sum(taken)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=30)
    options = parser.parse_args()
    torch.set_num_threads(1)
    scored = scoring(options.repeats)
    print(f"scoring: {scored['milliseconds']['median']:.1f} ms, {scored['operators']} operators", flush=True)
    removed = removal()
    print(f"a removal: {removed['seconds']['median']:.3f} s, {removed['seconds']['most']:.3f} s at most", flush=True)
    common.write("host_time", {"options": vars(options), "scoring": scored, "removal": removed})


if __name__ == "__main__":
    main()
