"""Shapes of well-known models, so that a run can be planned without their files or a network.

Knows nothing about weights.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

import yaml
from transformers import CONFIG_MAPPING, PreTrainedConfig

from loraprune.runtime.hub import lies_here


@cache
def published() -> dict[str, dict[str, Any]]:
    """Return name -> what config.json says about shapes."""
    shapes: dict[str, dict[str, Any]] = yaml.safe_load(
        (files("loraprune.models") / "known_shapes.yaml").read_text(encoding="utf-8")
    )
    return shapes


def published_config(name: str) -> PreTrainedConfig | None:
    """Return the configuration of a well-known model, or None where the name is a folder, or not known."""
    if lies_here(name) or name.lower() not in published():
        return None
    values = published()[name.lower()]
    config: PreTrainedConfig = CONFIG_MAPPING[values["model_type"]].from_dict(values)
    return config
