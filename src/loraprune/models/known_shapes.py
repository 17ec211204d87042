"""Shapes of well-known models, so that a run can be planned without their files or a network.

Knows nothing about weights. Imports transformers only to make a configuration.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import yaml

from loraprune.runtime.hub import is_local

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


@cache
def published() -> dict[str, dict[str, Any]]:
    """Return name -> what config.json says about shapes."""
    shapes: dict[str, dict[str, Any]] = yaml.safe_load(
        (files("loraprune.models") / "known_shapes.yaml").read_text(encoding="utf-8")
    )
    return shapes


def is_published(name: str) -> bool:
    """Return whether a name is that of a well-known model, and of no folder."""
    return not is_local(name) and name.lower() in published()


def published_config(name: str) -> PreTrainedConfig | None:
    """Return the configuration of a well-known model, or None where the name is a folder, or not known."""
    if not is_published(name):
        return None
    from transformers import CONFIG_MAPPING

    values = published()[name.lower()]
    config: PreTrainedConfig = CONFIG_MAPPING[values["model_type"]].from_dict(values)
    return config
