"""Cutting a tiny model to widths of its own in every layer and saving it, for the tests of layer-wise models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

from loraprune.families import find_groups
from loraprune.groups import Group
from loraprune.models.saving import save_model
from loraprune.plan import Plan
from loraprune.pruning.surgery import slice_
from tests.tiny import VARIANTS, tiny_config, tiny_model

SAME = 2e-5
"""largest relative difference of logits that float32 summation in another order explains; a wrong unit gives > 1e-2"""
LAYERS = 3

every_variant = pytest.mark.parametrize("variant", VARIANTS, scope="module")


def groups_of(variant: str) -> tuple[Group, ...]:
    return find_groups(tiny_config(variant, layers=LAYERS))


def cut(variant: str, plan: Plan, folder: Path) -> PreTrainedModel:
    """Slice a tiny model, save it, and return it."""
    model, groups = tiny_model(variant, layers=LAYERS), groups_of(variant)
    slice_(model, groups, plan.kept)
    save(model, folder, config=tiny_config(variant, layers=LAYERS), groups=groups, plan=plan)
    return model


def save(model: PreTrainedModel, folder: Path, *, config: Any, groups: tuple[Group, ...], plan: Plan) -> None:
    counts = {name: len(kept) for name, kept in plan.kept.items()}
    save_model(model, folder, config=config, groups=groups, counts=counts)
