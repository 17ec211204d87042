"""Prune transformers while fine-tuning them with LoRA.

Names are imported when first used, so that `import loraprune` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loraprune.api import attach_lora, save_pruned
    from loraprune.config.pruning import LoRAPruneConfig
    from loraprune.config.training import FinetuneConfig, PruneConfig
    from loraprune.families import register_family
    from loraprune.groups import Group, Span
    from loraprune.models.loading import from_pretrained
    from loraprune.pipeline import finetune, prune
    from loraprune.plan import Plan
    from loraprune.scoring.criteria import register_activation, register_gate, register_gradient, register_saliency
    from loraprune.training.callback import LoRAPruneCallback

_HOMES = {
    "FinetuneConfig": "config.training",
    "Group": "groups",
    "LoRAPruneCallback": "training.callback",
    "LoRAPruneConfig": "config.pruning",
    "Plan": "plan",
    "PruneConfig": "config.training",
    "Span": "groups",
    "attach_lora": "api",
    "finetune": "pipeline",
    "from_pretrained": "models.loading",
    "prune": "pipeline",
    "register_activation": "scoring.criteria",
    "register_family": "families",
    "register_gate": "scoring.criteria",
    "register_gradient": "scoring.criteria",
    "register_saliency": "scoring.criteria",
    "save_pruned": "api",
}

__all__ = [
    "FinetuneConfig",
    "Group",
    "LoRAPruneCallback",
    "LoRAPruneConfig",
    "Plan",
    "PruneConfig",
    "Span",
    "attach_lora",
    "finetune",
    "from_pretrained",
    "prune",
    "register_activation",
    "register_family",
    "register_gate",
    "register_gradient",
    "register_saliency",
    "save_pruned",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'loraprune' has no attribute {name!r}")
    return getattr(import_module(f"loraprune.{_HOMES[name]}"), name)
