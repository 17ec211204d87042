"""How a pruned model is stored and run, which its size in bytes and its speed depend on."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from loraprune.models.adapters import base_model
from loraprune.runtime.device import choose_dtype


@dataclass(frozen=True, slots=True)
class Deployment:
    """How a pruned model is stored and run."""

    stored: torch.dtype
    """precision that is saved"""
    computed: torch.dtype
    device: torch.device | None
    """where it is timed; None to expect its speed of its multiplications"""

    @classmethod
    def of_options(cls, dtype: str, device: torch.device, *, known: object, timed: bool = True) -> Deployment:
        """Return that of a run with --dtype on a device; `known` is the precision of its checkpoint, if it is known."""
        checkpoint = known if isinstance(known, torch.dtype) else None
        computed = choose_dtype(dtype, device, checkpoint) or checkpoint or torch.float32
        stored = checkpoint if dtype == "auto" and checkpoint else computed
        return cls(stored, computed, device if timed else None)

    @classmethod
    def of_model(cls, model: nn.Module) -> Deployment:
        """Return that of a model in memory, or of one without weights."""
        base = base_model(model)
        assert isinstance(base, PreTrainedModel)
        return cls(base.dtype, base.dtype, None if base.device.type == "meta" else base.device)


def own_config(model: nn.Module) -> PreTrainedConfig:
    """Return the configuration of a model with the name of its class, which may differ from the checkpoint's."""
    base = base_model(model)
    assert isinstance(base, PreTrainedModel)
    config = copy.deepcopy(base.config)
    config.architectures = [each.__name__ for each in type(base).__mro__]
    return config
