"""Projections that are alike are scored by one call, however many layers there are; each group gets the scores of its own."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from loraprune.families import find_groups
from loraprune.models.adapters import find_module, linear_paths
from loraprune.pruning.surgery import slice_
from loraprune.scoring import make_scorer
from loraprune.scoring.criteria import Saliency, criteria
from loraprune.scoring.scorers.batches import find_batches
from tests.scoring.criteria.cases import backward
from tests.tiny import tiny_model, tokens, with_lora

LORA = criteria.get("lora")
assert isinstance(LORA, Saliency)
BY_TILES = dataclasses.replace(LORA, fused=None)


class Operators(TorchDispatchMode):
    """Counts the operators that torch carries out: on a GPU, launches."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return function(*args, **(kwargs or {}))


def operators(criterion: Saliency, layers: int) -> int:
    model = with_lora(tiny_model("llama", layers=layers))
    scorer = make_scorer(criterion, model, find_groups(model.config), power=2, normalize=False, seed=0)
    backward(model, tokens())
    scorer.collect()  # finds what is alike
    with Operators() as counted:
        scorer.collect()
    return counted.count


def test_more_layers_take_no_more_operators() -> None:
    assert operators(LORA, 6) == operators(LORA, 2) < 200
    assert operators(BY_TILES, 6) > 2.5 * operators(BY_TILES, 2)  # the control


@pytest.mark.parametrize("normalize", [False, True], ids=["plain", "normalised"])
@pytest.mark.parametrize("variant", ["llama", "phi3", "gpt2", "olmo2"])
def test_scores_of_layers_of_several_widths_are_those_of_each_alone(variant: str, normalize: bool) -> None:
    """Two of four layers keep the same units, so that batches of one and of several occur."""
    model = with_lora(tiny_model(variant, layers=4))
    groups = find_groups(model.config)
    kinds: dict[str, list[str]] = {}
    for group in groups:
        kinds.setdefault(group.kind, []).append(group.name)
    kept = {name: [0, 2] for name in kinds["attention"][1:3]} | {name: [0, 5, 7, 30] for name in kinds["ffn"][:2]}
    smaller = slice_(model, groups, kept)
    backward(model, tokens())
    batches, alike = find_batches({path: find_module(model, path) for path in linear_paths(smaller)}, smaller)
    assert sum(len(each.groups) for each in alike) == len(groups) > len(alike) > 2
    assert sum(len(batch.projections) for batch in batches) == len(linear_paths(smaller)) > len(batches)
    together, each_alone = (
        make_scorer(criterion, model, smaller, power=2, normalize=normalize, seed=0).collect()
        for criterion in (LORA, BY_TILES)
    )
    assert together.keys() == each_alone.keys()
    for name in each_alone:
        torch.testing.assert_close(together[name], each_alone[name], rtol=1e-5, atol=0)
    first, second = kinds["ffn"][:2]
    assert not torch.allclose(together[first], together[second], rtol=1e-2)  # the control: another layer's
