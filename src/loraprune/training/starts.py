"""Check a user's Trainer before it trains, to refuse settings with which the work would be lost.

Knows nothing about pruning but that a model gets smaller.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from contextlib import suppress

import torch
from torch import nn
from transformers import TrainingArguments

from loraprune.errors import ConfigError
from loraprune.models.adapters import config_of
from loraprune.pruning.optimizer_state import REMEDY, copies_outside_state, odd_entry, odd_state_problem
from loraprune.runtime import launch

FOREIGN = ("bitsandbytes.", "torchao.")
"""optimisers whose moments are stored in blocks or in separate pages"""


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


def check_outputs(model: nn.Module) -> None:
    """Refuse a model that returns tuples, of which most of transformers' models cannot compute a loss.

    Raises:
        ConfigError: for `return_dict` False.
    """
    if not getattr(config_of(model), "return_dict", True):
        raise ConfigError(
            "model.config.return_dict=False: the model would return tuples, and what is compared before and after a removal is read by "
            "name; set it to True: the result can be indexed like a tuple all the same"
        )


def check_optimizer(optimizer: torch.optim.Optimizer | None, model: nn.Module) -> None:
    """Refuse an optimiser whose state does not follow the shapes of the parameters, so that it cannot be cut with them.

    Raises:
        ConfigError: for quantised states, for those that are kept for rows and columns, and for copies of weights outside the state.
    """
    name, module = type(optimizer).__name__, type(optimizer).__module__
    if module.startswith(FOREIGN):
        raise ConfigError(f"{name} of {module.partition('.')[0]}: its state cannot be cut with the model; {REMEDY}")
    if optimizer is None:
        return
    place = copies_outside_state(optimizer)
    if not place:
        trial = try_out(optimizer, next(model.parameters()).device)
        for weight, state in trial.state.items():
            if odd := odd_entry(state, weight.shape):
                raise ConfigError(odd_state_problem(optimizer, odd))
        place = copies_outside_state(trial)
    if place:
        raise ConfigError(
            f"{name}: {place!r} holds copies of weights or a state outside of `state`, which would not be cut with the weights; {REMEDY}"
        )


def try_out(optimizer: torch.optim.Optimizer, device: torch.device) -> torch.optim.Optimizer:
    """Return a copy of an optimiser that took a step with separate parameters, as its states are not known before.

    An optimiser that needs more than parameters and gradients has no state then; `cut_state_` looks at it again.
    """
    trial = copy.copy(optimizer)  # without hooks, and without what a class adds to torch's own
    for name in vars(optimizer).keys() - vars(trial).keys():
        value = getattr(optimizer, name)
        setattr(trial, name, copy.copy(value) if isinstance(value, dict | list | torch.Tensor) else value)
    trial.state, trial.param_groups = defaultdict(dict), []
    for group in optimizer.param_groups:
        weight = nn.Parameter(torch.ones(6, 4, device=device))
        weight.grad = torch.ones_like(weight)
        trial.param_groups.append({**group, "params": [weight]})
    with suppress(Exception):
        type(optimizer).step(trial)  # not the one of the object, which a scheduler may have replaced
    return trial
