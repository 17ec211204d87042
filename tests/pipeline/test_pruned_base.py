"""A pruned model is a base like any other: it is tuned with LoRA again, and pruned again."""

from __future__ import annotations

from pathlib import Path

import pytest

from loraprune import pipeline
from loraprune.config.training import FinetuneConfig
from tests.pipeline.cases import SHORT, check_loads_anywhere, count, one_step, prune_config, read_report, shapes


def test_a_pruned_model_is_tuned_again(pruned: Path, inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    pipeline.finetune(FinetuneConfig(model=str(pruned), data=str(inputs / "text.txt"), output=str(out), **SHORT))
    check_loads_anywhere(out)
    assert shapes(out) == shapes(pruned)
    assert (out / "model.safetensors").read_bytes() != (pruned / "model.safetensors").read_bytes()
    report = read_report(out)["perplexity"]
    assert report["dense"] == pytest.approx(read_report(pruned)["perplexity"]["pruned"], rel=1e-3)
    assert report["pruned"] < report["dense"]


@pytest.mark.parametrize("ratio", [0.25, 0.5])
def test_a_pruned_model_is_pruned_again(ratio: float, pruned: Path, inputs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    pipeline.prune(prune_config(inputs, out, model=str(pruned), ratio=ratio))
    check_loads_anywhere(out)
    report = read_report(out)
    gone = count(pruned, prunable=True) - count(out, prunable=True)
    assert gone == report["parameters"]["prunable_dense"] - report["parameters"]["prunable_pruned"]
    # Heads go in whole groups, channels in steps, so that a small model misses a ratio by some of each.
    assert abs(report["ratio_reached"] - ratio) <= 2 * one_step(pruned, pruned)
    assert gone > 0  # the control: something went once more


def test_a_model_of_uneven_layers_is_pruned_again(inputs: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    pipeline.prune(prune_config(inputs, first, allocation="global", ratio=0.3))
    assert len({tuple(shape) for name, shape in shapes(first).items() if "up_proj" in name}) == 2
    pipeline.prune(prune_config(inputs, second, allocation="global", ratio=0.3, model=str(first)))
    assert count(second, prunable=True) < count(first, prunable=True)
    assert read_report(second)["parameters"]["dense"] == read_report(first)["parameters"]["pruned"]
