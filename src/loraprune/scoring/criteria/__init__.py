"""Criteria, one file each; docs/add-a-criterion.md shows how to add one."""

from loraprune.scoring.criteria import (  # noqa: F401
    flap,
    gate,
    gradient,
    lora,
    magnitude,
    movement,
    random,
    reap,
    sketch,
    taylor,
    wanda,
)
from loraprune.scoring.criteria.base import (
    Activation,
    Channels,
    Criterion,
    Gate,
    Gradient,
    Routing,
    Saliency,
    Tile,
    criteria,
    register_activation,
    register_gate,
    register_gradient,
    register_routing,
    register_saliency,
)

__all__ = [
    "Activation",
    "Channels",
    "Criterion",
    "Gate",
    "Gradient",
    "Routing",
    "Saliency",
    "Tile",
    "criteria",
    "register_activation",
    "register_gate",
    "register_gradient",
    "register_routing",
    "register_saliency",
]
