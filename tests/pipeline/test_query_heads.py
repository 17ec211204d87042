"""Runs that remove query heads inside the groups of key-value heads, once and beside a run that removes these."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loraprune import pipeline
from loraprune.plan import Plan
from tests.pipeline.cases import check_loads_anywhere, prune_config, read_report
from tests.samples import save_tiny, write_text


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a tiny model of eight query heads for two key-value heads, and a text."""
    root = tmp_path_factory.mktemp("inputs")
    save_tiny(root / "model", num_attention_heads=8, num_key_value_heads=2)
    write_text(root / "text.txt", 200)
    return root


def widths(folder: Path) -> tuple[int, int, int]:
    config = json.loads((folder / "config.json").read_text())
    return config["num_attention_heads"], config["num_key_value_heads"], config["intermediate_size"]


def test_the_recommended_recipe_with_query_heads(inputs: Path, tmp_path: Path) -> None:
    """Measured split, reconstruction of projections, verification and report."""
    recipe = {"schedule": "oneshot", "allocation": "measured", "criterion": "wanda", "compensate": True, "warmup": None,
              "cooldown": None, "interval": None, "html": True}  # fmt: skip
    pipeline.prune(prune_config(inputs, tmp_path / "out", ratio=0.4, kinds="query,ffn", **recipe))
    check_loads_anywhere(tmp_path / "out")
    report, plan = read_report(tmp_path / "out"), Plan.read(tmp_path / "out")
    assert report["verification"]["masked_vs_sliced"] <= 1e-4
    heads, key_values, _ = widths(tmp_path / "out")
    assert (heads % 2, key_values) == (0, 2)
    assert heads < 8
    entry = report["units"]["model.layers.0.self_attn"]
    assert entry == {"kind": "query", "dense": 8, "kept": heads}
    assert plan.parts["model.layers.0.self_attn"] == 2
    assert "query heads" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_key_value_heads_go_in_one_run_and_query_heads_in_the_next(inputs: Path, tmp_path: Path) -> None:
    """In either order, and at last nothing is left to cut but one query head."""
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    pipeline.prune(prune_config(inputs, first, heads=6, kinds="query", steps=3))
    pipeline.prune(prune_config(inputs, second, heads=3, model=str(first), steps=3))
    pipeline.prune(prune_config(inputs, third, heads=1, model=str(second), steps=3))
    assert [widths(folder)[:2] for folder in (first, second, third)] == [(6, 2), (3, 1), (1, 1)]
    for folder in (first, second, third):
        check_loads_anywhere(folder)
        assert read_report(folder)["verification"]["masked_vs_sliced"] <= 1e-4
    assert {entry["kind"] for entry in read_report(third)["units"].values()} == {"query", "ffn"}


@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_two_rounds_of_them_are_one_plan(allocation: str, inputs: Path, tmp_path: Path) -> None:
    pipeline.prune(
        prune_config(inputs, tmp_path / "out", ratio=0.5, kinds="query,ffn", allocation=allocation, rounds=2, steps=6)
    )
    report, plan = read_report(tmp_path / "out"), Plan.read(tmp_path / "out")
    assert report["verification"]["masked_vs_sliced"] <= 1e-4
    assert set(plan.parts.values()) == {2}
    assert all(plan.units[name] == 8 for name in plan.parts)
    assert min(len(plan.kept[name]) for name in plan.parts) < 8
