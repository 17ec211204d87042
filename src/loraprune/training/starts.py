"""Check a user's Trainer before it trains, to refuse settings with which the work would be lost.

Knows nothing about pruning but that a model gets smaller.
"""

from __future__ import annotations

import copy
from collections import defaultdict

import torch
from torch import Tensor, nn
from transformers import TrainingArguments

from loraprune.errors import ConfigError
from loraprune.runtime import launch

FOREIGN = ("bitsandbytes.", "torchao.")
"""optimisers whose moments are stored in blocks or in separate pages"""
REMEDY = "train with torch's AdamW, or with shrink=False"


def check_arguments(args: TrainingArguments, *, guarded: bool) -> None:
    """Refuse settings of a Trainer with which a shrinking model would be lost.

    Raises:
        ConfigError: for DeepSpeed, for FSDP unless a `GuardedTrainer` trains, and for the best checkpoint at the end.
    """
    if args.deepspeed or launch.uses_deepspeed():
        raise ConfigError(launch.DEEPSPEED)
    if launch.is_sharded() and not guarded:
        raise ConfigError(
            "FSDP: a sharded model cannot be cut at the end of a training outside of loraprune; use `loraprune prune`, or DDP"
        )
    if args.load_best_model_at_end:
        raise ConfigError(
            "load_best_model_at_end=True: the best checkpoint is nearly always one from before the removals, with other shapes; "
            "set it to False, or use `loraprune prune --patience N`, which keeps the best after them"
        )


def check_optimizer(optimizer: torch.optim.Optimizer | None, model: nn.Module) -> None:
    """Refuse an optimiser whose state does not follow the shapes of the parameters, so that it cannot be cut with them.

    Raises:
        ConfigError: for quantised states, and for those that are kept for rows and columns.
    """
    name, module = type(optimizer).__name__, type(optimizer).__module__
    if module.startswith(FOREIGN):
        raise ConfigError(f"{name} of {module.partition('.')[0]}: its state cannot be cut with the model; {REMEDY}")
    if optimizer is not None and (odd := odd_state(optimizer, next(model.parameters()).device)):
        raise ConfigError(
            f"{name}: its state {odd!r} does not have one number per weight, so it cannot be cut with the weight; {REMEDY}"
        )


def odd_state(optimizer: torch.optim.Optimizer, device: torch.device) -> str | None:
    """Return the name of a state of an optimiser that has another shape than its parameter; None where there is none.

    A copy of the optimiser takes a step with a separate parameter: its states are not known before.
    """
    trial = copy.copy(optimizer)
    trial.state = defaultdict(dict)
    weight = nn.Parameter(torch.ones(6, 4, device=device))
    weight.grad = torch.ones_like(weight)
    trial.param_groups = [{**optimizer.param_groups[0], "params": [weight]}]
    try:
        type(optimizer).step(trial)  # not the one of the object, which a scheduler may have replaced
    except Exception:  # an optimiser that needs more than parameters and gradients
        return None
    tensors = ((name, value) for name, value in trial.state[weight].items() if isinstance(value, Tensor))
    return next((str(name) for name, value in tensors if value.numel() > 1 and value.shape != weight.shape), None)
