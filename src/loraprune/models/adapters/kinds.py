"""Kinds of adapters: LoRA and its variants that prune exactly, as PEFT names them, and where each cannot be used."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from loraprune.config.base import PLAIN, SPLITTING
from loraprune.errors import ConfigError
from loraprune.models.adapters.modules import base_layer, is_transposed
from loraprune.models.quantised import kind_of

PEFT_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"},
}
"""kind of adapter -> what its LoraConfig has beside rank and alpha"""


def check_kind(kind: str, layers: Iterable[tuple[str, nn.Module]]) -> None:
    """Refuse a kind of adapter on layers that it does not support; `layers` are paths and the layers there.

    Raises:
        ConfigError: for a kind that is unknown, quantised weights, convolutions, and weights that PEFT's OLoRA reads transposed.
    """
    if kind not in PEFT_OPTIONS:
        raise ConfigError(f"--adapter {kind}: one of {', '.join(PEFT_OPTIONS)} is needed")
    if kind in PLAIN:
        return
    for path, module in layers:
        if why := _problem(kind, base_layer(module)):
            raise ConfigError(f"--adapter {kind}: {path!r} {why}; use --adapter lora or rslora")


def _problem(kind: str, layer: nn.Module) -> str | None:
    """Return why a kind of adapter cannot be used on a layer."""
    if kind_of(layer):
        return f"has a quantised weight, {'of which a part would move to the factors' if kind in SPLITTING else 'whose norms are not cut'}"
    if kind in SPLITTING and isinstance(layer, nn.Conv2d):
        return "is a convolution, whose weight has no singular vectors or Q and R in PEFT"
    if kind == "olora" and is_transposed(layer):
        return "stores its weight as (in, out), and PEFT's OLoRA takes its factors from the wrong sides"
    return None
