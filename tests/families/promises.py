"""What the tests of every family share: a tiny model of a variant, masked, sliced or saved."""

from __future__ import annotations

import copy
import functools
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from packaging.version import Version
from torch import nn
from transformers import PreTrainedModel

from loraprune.families import find_groups
from loraprune.groups import Group
from loraprune.models.saving import save_model, storable_counts
from loraprune.plan import Plan
from loraprune.pruning.masking import Masks
from tests.tiny import EVERY, FFN, HEADS, output, tiny_config, tiny_model, uniform_plan, with_lora

SAME = 2e-5
"""largest relative difference of logits that float32 summation in another order explains; a wrong unit gives > 1e-2"""

FIXED = {"bloom"} | ({"dinov2", "dinov2-gated"} if Version(version("transformers")) < Version("5.18") else set())
STORABLE = [variant for variant in EVERY if variant not in FIXED]
"""BLOOM's code fixes the width of its FFN, and DINOv2's the head size before transformers 5.18: they need modelling code"""

# The scope lets pytest run the tests of one variant in a row, for which `_built` keeps its models.
every_variant = pytest.mark.parametrize("variant", EVERY, scope="module")
storable = pytest.mark.parametrize("variant", STORABLE, scope="module")


@functools.lru_cache(maxsize=2)
def _built(variant: str, lora: bool) -> nn.Module:
    model = tiny_model(variant)
    return with_lora(model) if lora else model


def build(variant: str, *, lora: bool) -> tuple[nn.Module, tuple[Group, ...]]:
    """Return a new model and its groups."""
    return copy.deepcopy(_built(variant, lora)), find_groups(tiny_config(variant))


def masked(variant: str, model: nn.Module, groups: tuple[Group, ...], plan: Plan) -> torch.Tensor:
    masks = Masks(model, groups)
    masks.set(plan.kept)
    result = output(model, variant)
    masks.remove()
    return result


def storable_plan(variant: str, groups: tuple[Group, ...], *, seed: int = 0) -> Plan:
    """Return a plan that a stock checkpoint can hold; it keeps an odd number of heads where that is possible, or all."""
    storable = storable_counts(tiny_config(variant), groups)
    for heads, ffn in ((3, 40), (2, 40), (HEADS, 40), (3, 8 * FFN)):
        plan = uniform_plan(groups, heads, ffn, seed=seed)
        if storable({name: len(kept) for name, kept in plan.kept.items()}):
            return plan
    raise AssertionError(f"{variant} can store neither fewer units of attention nor narrower FFNs")


def save(variant: str, model: PreTrainedModel, folder: Path, *, groups: tuple[Group, ...], plan: Plan) -> None:
    counts = {name: len(kept) for name, kept in plan.kept.items()}
    save_model(model, folder, config=tiny_config(variant), groups=groups, counts=counts)
    assert not list(folder.glob("*.py"))  # a stock checkpoint
