"""What matters: one file a criterion; docs/add-a-criterion.md shows how to add one."""

from loraprune.criteria import gate, lora, magnitude, random  # noqa: F401  (importing a criterion registers it)
from loraprune.criteria.base import Criterion, Tile, criteria, register_gate, register_saliency
from loraprune.criteria.scoring import GateScorer, SaliencyScorer, Scorer, make_scorer

__all__ = [
    "Criterion",
    "GateScorer",
    "SaliencyScorer",
    "Scorer",
    "Tile",
    "criteria",
    "make_scorer",
    "register_gate",
    "register_saliency",
]
