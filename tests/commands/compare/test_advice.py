"""A comparison over sizes names a knee where there is one, and says so where there is none, in its table and its plot."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from loraprune.commands.compare import plots
from loraprune.commands.compare.advice import recommend
from loraprune.commands.compare.summary import markdown, summarise

DENSE = 10e6
RATIOS = (0.1, 0.2, 0.3, 0.4)


def cells(criterion: str, losses: tuple[float, ...], *, baseline: bool = True, steps: int = 10) -> list[dict[str, Any]]:
    """Return the cells of a curve, and the tuned dense model, whose loss is 1."""
    shared = {
        "metric": "perplexity",
        "wall_seconds": 1.0,
        "peak_memory_bytes": 1,
        "seed": 0,
        "options": {"steps": steps},
    }
    tuned = {
        "recipe": "finetune", "labels": {"run": "finetune"}, "job": "finetune", "key": "tuned", "baseline": None,
        "perplexity": {"dense": math.exp(2), "pruned": math.e}, "parameters": {"dense": DENSE, "pruned": DENSE},
    }  # fmt: skip
    pruned = [
        {
            "recipe": f"{criterion}, ratio {ratio}", "labels": {"criterion": criterion, "ratio": f"ratio {ratio}"}, "job": "prune",
            "key": f"{criterion}{ratio}", "baseline": "tuned" if baseline else None, "ratio_reached": ratio,
            "perplexity": {"dense": math.exp(2), "pruned": math.exp(1 + loss)},
            "parameters": {"dense": DENSE, "pruned": DENSE * (1 - ratio)},
        }
        for ratio, loss in zip(RATIOS, losses, strict=True)
    ]  # fmt: skip
    return [each | shared for each in ([tuned] if baseline else []) + pruned]


def values_of(entries: list[dict[str, Any]]) -> dict[str, Any]:
    recipes = summarise(entries, None)
    return {
        "model": "m", "data": "d", "recipes": recipes, "recommendations": recommend(entries, recipes), "cells": entries, "reference": None,
    }  # fmt: skip


BENT, STRAIGHT = (0.01, 0.02, 0.03, 0.9), (0.05, 0.1, 0.15, 0.2)


def test_every_curve_has_its_own_recommendation() -> None:
    bent, straight = cells("bent", BENT), cells("straight", STRAIGHT)
    values = values_of([*bent, *straight[1:]])
    assert (
        values["recommendations"]["bent"]["knee"]
        == values["recommendations"]["bent"]["recommended"]
        == "bent, ratio 0.3"
    )
    assert values["recommendations"]["straight"]["knee"] is None  # the control
    assert values["recommendations"]["straight"]["recommended"] == "straight, ratio 0.4"
    table = markdown(values)
    assert "| bent, ratio 0.3 (knee, recommended) |" in table
    assert "| straight, ratio 0.4 (recommended) |" in table
    assert table.count("recommended)") == 2
    assert (
        "Sizes of straight: no knee was found; straight, ratio 0.4 is the smallest size with the verdict usable."
        in table
    )
    assert "The knee is the size furthest below the straight line" in table


def test_the_dense_model_is_a_part_of_the_curve_where_it_was_trained_alike() -> None:
    losses = (0.0, 0.1, 0.2, 0.3)  # bends at the first size beside a dense model without a gap
    assert values_of(cells("a", losses))["recommendations"]["a"]["knee"] == "a, ratio 0.1"
    assert values_of(cells("a", losses, baseline=False))["recommendations"]["a"]["knee"] is None
    above = tuple(1 + loss for loss in losses)  # the same, relative to the dense model that is not tuned
    assert values_of(cells("a", above, baseline=False, steps=0))["recommendations"]["a"]["knee"] == "a, ratio 0.1"


def test_one_size_is_no_curve() -> None:
    values = values_of(cells("a", BENT)[:2])
    assert values["recommendations"] == {}
    assert "knee" not in markdown(values)


def test_no_size_is_recommended_where_none_is_usable() -> None:
    advice = values_of(cells("a", (0.5, 0.6, 0.7, 0.8)))["recommendations"]["a"]
    assert advice["recommended"] is None
    assert advice["reason"].endswith("none is recommended")


def test_the_plot_rings_the_recommended_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Any] = []
    monkeypatch.setattr(plots, "save", lambda figure, *_: figures.append(figure))
    for losses in (BENT, STRAIGHT):
        values = values_of(cells("a", losses))
        plots.perplexity(values["recipes"], values["cells"], tmp_path, values["recommendations"])
    bent, straight = ({text.get_text(): text.xy for text in figure.axes[0].texts} for figure in figures)
    assert bent["knee, recommended"] == pytest.approx((7.0, math.exp(1.03)))
    assert "knee, recommended" not in straight
    assert straight["recommended"] == pytest.approx((6.0, math.exp(1.2)))
