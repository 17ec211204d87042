"""Prune transformers while fine-tuning them with LoRA.

    import loraprune

    small = loraprune.prune(model, tokenizer=tokenizer, data=texts, ratio=0.2, steps=200)
    small.report, small.model, small.save("small")

`prune` and `finetune` train; `inspect` and `plan` read a configuration; `evaluate`, `benchmark` and `compare` measure; `export` writes
other formats. All take a transformers model, a folder or a hub id. `LoRAPruneCallback`, `attach_lora` and `save_pruned` are for
your own Trainer; `register_...` adds families and criteria. Names are imported when first used, so that `import loraprune` costs
nothing.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loraprune.api import attach_lora, save_pruned
    from loraprune.config.pruning import LoRAPruneConfig
    from loraprune.config.training import FinetuneConfig, PruneConfig
    from loraprune.families import register_family
    from loraprune.functions.leaving import export
    from loraprune.functions.looking import inspect, plan
    from loraprune.functions.measuring import benchmark, compare, evaluate
    from loraprune.functions.results import Result
    from loraprune.functions.training import finetune, prune
    from loraprune.groups import Group, Span
    from loraprune.models.loading import from_pretrained
    from loraprune.plan import Plan
    from loraprune.scoring.criteria import (
        register_activation,
        register_gate,
        register_gradient,
        register_routing,
        register_saliency,
    )
    from loraprune.training.callback import LoRAPruneCallback

    __version__: str

_HOMES = {
    "FinetuneConfig": "config.training",
    "Group": "groups",
    "LoRAPruneCallback": "training.callback",
    "LoRAPruneConfig": "config.pruning",
    "Plan": "plan",
    "PruneConfig": "config.training",
    "Result": "functions.results",
    "Span": "groups",
    "attach_lora": "api",
    "benchmark": "functions.measuring",
    "compare": "functions.measuring",
    "evaluate": "functions.measuring",
    "export": "functions.leaving",
    "finetune": "functions.training",
    "from_pretrained": "models.loading",
    "inspect": "functions.looking",
    "plan": "functions.looking",
    "prune": "functions.training",
    "register_activation": "scoring.criteria",
    "register_family": "families",
    "register_gate": "scoring.criteria",
    "register_gradient": "scoring.criteria",
    "register_routing": "scoring.criteria",
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
    "Result",
    "Span",
    "attach_lora",
    "benchmark",
    "compare",
    "evaluate",
    "export",
    "finetune",
    "from_pretrained",
    "inspect",
    "plan",
    "prune",
    "register_activation",
    "register_family",
    "register_gate",
    "register_gradient",
    "register_routing",
    "register_saliency",
    "save_pruned",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("loraprune")
    if name not in _HOMES:
        raise AttributeError(f"module 'loraprune' has no attribute {name!r}")
    return getattr(import_module(f"loraprune.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


class _Package(ModuleType):
    """Keeps `plan` and `export` functions: importing the modules of these names would replace them."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
