"""Criteria, one file each; docs/add-a-criterion.md shows how to add one."""

from loraprune.scoring.criteria import flap, gate, gradient, lora, magnitude, movement, random, sketch, taylor, wanda  # noqa: F401
from loraprune.scoring.criteria.base import (
    Activation,
    Channels,
    Criterion,
    Gate,
    Gradient,
    Saliency,
    Tile,
    criteria,
    register_activation,
    register_gate,
    register_gradient,
    register_saliency,
)

__all__ = [
    "Activation",
    "Channels",
    "Criterion",
    "Gate",
    "Gradient",
    "Saliency",
    "Tile",
    "criteria",
    "register_activation",
    "register_gate",
    "register_gradient",
    "register_saliency",
]
