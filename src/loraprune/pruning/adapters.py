"""Check the kind of adapter of a run before any weights are read."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from loraprune.config.base import PLAIN, SPLITTING
from loraprune.errors import ConfigError
from loraprune.groups import Group
from loraprune.models.adapters import check_kind, find_module, linear_paths
from loraprune.runtime import launch

REMEDY = "use --adapter lora or rslora"


def check_adapter(kind: str, model: nn.Module, groups: Sequence[Group], *, quantize: str) -> None:
    """Refuse a kind of adapter where it cannot be used; `model` may be without weights.

    Raises:
        ConfigError: for quantised or sharded weights, and as `loraprune.models.adapters.check_kind`.
    """
    if kind in PLAIN:
        return
    what = (
        "a part of the frozen weights moves to the adapters" if kind in SPLITTING else "it reads the norms of all rows"
    )
    if quantize != "none":
        raise ConfigError(f"--adapter {kind} --quantize {quantize}: {what}, which must not be quantised; {REMEDY}")
    if launch.is_sharded():
        raise ConfigError(f"--adapter {kind}: {what}, which FSDP shards; {REMEDY}, or launch without --use_fsdp")
    check_kind(kind, [(path, find_module(model, path)) for path in linear_paths(groups)])
