"""What holds for every kind of criterion."""

from __future__ import annotations

import pytest
import torch

from loraprune.errors import ConfigError
from loraprune.pruning.masking import Masks
from loraprune.pruning.surgery import slice_
from loraprune.scoring.criteria import criteria
from tests.scoring.criteria.cases import (
    backward,
    build,
    every_variant,
    scorer_of,
)
from tests.tiny import tokens


@pytest.mark.parametrize(
    ("name", "normalize"),
    [("lora", False), ("lora", True), ("magnitude", False), ("gate", False), ("gradient", True), ("wanda", False)],
)
@every_variant
def test_scores_of_a_cut_model_are_those_of_the_masked_one(name: str, normalize: bool, variant: str) -> None:
    found = {}
    kept = {"model.layers.0.self_attn": [0, 2, 3], "model.layers.1.mlp": list(range(5, 50))}
    for way in ("masked", "cut"):
        model, groups = build(variant)
        scorer = scorer_of(name, model, groups, normalize=normalize)
        masks, left = Masks(model, groups), None
        if way == "masked":
            masks.set(kept)
            left = {group.name: kept.get(group.name, list(range(group.units))) for group in groups}
        else:
            masks.remove()
            scorer.resize(slice_(model, groups, kept))
        backward(model, tokens())
        found[way] = scorer.collect(left)
    for group in groups:
        torch.testing.assert_close(found["cut"][group.name], found["masked"][group.name], rtol=1e-3, atol=1e-10)


def test_random_scores_differ_from_step_to_step_and_repeat_with_the_seed() -> None:
    model, groups = build()
    scorer, twin = scorer_of("random", model, groups), scorer_of("random", model, groups)
    first, second, again = scorer.collect(), scorer.collect(), twin.collect()
    name = groups[1].name
    assert torch.equal(first[name], again[name])
    assert not torch.equal(first[name], second[name])


def test_a_criterion_that_needs_gradients_says_so_without_them() -> None:
    model, groups = build()
    with pytest.raises(ConfigError, match="needs gradients"):
        scorer_of("lora", model, groups).collect()
    assert scorer_of("magnitude", model, groups).collect()


def test_an_unknown_criterion_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown criterion 'magnitud' \(did you mean 'magnitude'\?\)"):
        criteria.get("magnitud")
