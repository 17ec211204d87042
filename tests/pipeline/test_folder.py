"""What stands in the folder that comes out, and what a stranger counts in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from loraprune import cli, pipeline
from loraprune.plan import Plan
from tests.pipeline import stranger
from tests.pipeline.cases import (
    FILES,
    SHORT,
    STEP,
    check_loads_anywhere,
    count,
    one_step,
    prune_config,
    read_report,
    shapes,
)


def test_pruned_folder_holds_what_is_promised(pruned: Path) -> None:
    assert set(FILES) | {"plan.json", "scores.safetensors"} <= {path.name for path in pruned.iterdir()}
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in pruned.iterdir())
    assert [path.name for path in pruned.parent.iterdir()] == ["out"]  # nothing temporary is left beside it


def test_pruned_folder_loads_with_plain_transformers_and_generates(pruned: Path) -> None:
    found = check_loads_anywhere(pruned)
    assert found.pop("class").endswith(".LlamaForCausalLM")
    # A new process, which does not see this package.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(
        [sys.executable, "-W", "ignore", stranger.__file__, str(pruned)],
        capture_output=True, text=True, timeout=240, check=False, env=environment,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    elsewhere = json.loads(result.stdout.splitlines()[-1])
    assert elsewhere.pop("class").endswith(".LlamaForCausalLM")
    assert elsewhere.pop("ours") == []
    assert found.pop("ours")  # here it is there
    assert elsewhere == found | {"loss": pytest.approx(found["loss"])}


def test_report_has_every_promised_key(pruned: Path) -> None:
    report = read_report(pruned)
    assert {
        "ratio_requested", "ratio_reached", "parameters", "perplexity", "verification", "wall_seconds", "total_seconds",
        "steps", "peak_memory_bytes", "seed", "versions",
    } <= report.keys()  # fmt: skip
    assert {"dense", "pruned", "prunable_dense", "prunable_pruned"} <= report["parameters"].keys()
    assert {"dense", "pruned", "protocol"} <= report["perplexity"].keys()
    assert {"masked_vs_sliced", "sliced_vs_reloaded"} <= report["verification"].keys()
    assert report["ratio_requested"] == 0.5
    assert report["steps"] == SHORT["steps"]
    assert report["seed"] == 0
    assert 0 < report["wall_seconds"] < report["total_seconds"]
    assert report["peak_memory_bytes"] > 0
    assert {"torch", "transformers", "peft", "loraprune"} <= report["versions"].keys()


def test_a_stranger_counts_what_the_report_says(pruned: Path, inputs: Path) -> None:
    report, dense = read_report(pruned), inputs / "model"
    parameters = report["parameters"]
    assert count(pruned) == parameters["pruned"]
    assert count(dense) == parameters["dense"]
    assert count(pruned, prunable=True) == parameters["prunable_pruned"]
    assert count(dense, prunable=True) == parameters["prunable_dense"]
    sides = sum(sum(shape) for name, shape in shapes(dense).items() if "_proj." in name)
    assert parameters["trainable"] == SHORT["rank"] * sides  # a row of A for every column, a column of B for every row
    reached = 1 - count(pruned, prunable=True) / count(dense, prunable=True)
    assert report["ratio_reached"] == pytest.approx(reached, abs=1e-12)
    assert abs(reached - 0.5) <= one_step(pruned, dense)
    assert report["ratio_of_whole_model"] == pytest.approx(1 - count(pruned) / count(dense), abs=1e-12)


def test_widths_are_those_of_plan_config_and_weights(pruned: Path) -> None:
    plan, config, found = Plan.read(pruned), json.loads((pruned / "config.json").read_text()), shapes(pruned)
    for layer in range(2):
        channels = len(plan.kept[f"model.layers.{layer}.mlp"])
        heads = len(plan.kept[f"model.layers.{layer}.self_attn"])
        assert found[f"model.layers.{layer}.mlp.gate_proj.weight"] == [channels, 32]
        assert found[f"model.layers.{layer}.mlp.down_proj.weight"] == [32, channels]
        assert found[f"model.layers.{layer}.self_attn.k_proj.weight"] == [heads * 8, 32]
        assert config["intermediate_size"] == channels < 64
        assert channels % STEP == 0
        assert config["num_key_value_heads"] == heads
        assert config["num_attention_heads"] == 2 * heads
    units = read_report(pruned)["units"]["model.layers.0.mlp"]
    assert units == {"kind": "ffn", "dense": 64, "kept": config["intermediate_size"]}


def test_report_tells_quality_and_verification_apart(pruned: Path) -> None:
    report = read_report(pruned)
    assert report["perplexity"]["protocol"]["window_tokens"] == SHORT["length"]
    assert report["perplexity"]["pruned"] != report["perplexity"]["dense"]
    assert report["verification"]["masked_vs_sliced"] <= report["verification"]["tolerance"] == 1e-4
    assert 0 <= report["verification"]["sliced_vs_reloaded"] <= 1e-4


def test_run_yaml_repeats_the_run(pruned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = tmp_path / "again"
    assert cli.main(["prune", "--config", str(pruned / "run.yaml"), "--output", str(again), "--json"]) == 0
    assert (again / "model.safetensors").read_bytes() == (pruned / "model.safetensors").read_bytes()
    printed = json.loads(capsys.readouterr().out)
    assert printed == read_report(again)
    assert yaml.safe_load((again / "run.yaml").read_text()) == (
        yaml.safe_load((pruned / "run.yaml").read_text()) | {"output": str(again)}
    )


def test_same_seed_gives_the_same_bytes_and_another_seed_does_not(pruned: Path, inputs: Path, tmp_path: Path) -> None:
    pipeline.prune(prune_config(inputs, tmp_path / "same"))
    pipeline.prune(prune_config(inputs, tmp_path / "other", seed=1))
    for name in ("model.safetensors", "plan.json", "scores.safetensors"):
        assert (tmp_path / "same" / name).read_bytes() == (pruned / name).read_bytes()
    assert (tmp_path / "other" / "model.safetensors").read_bytes() != (pruned / "model.safetensors").read_bytes()


def test_masked_training_ends_with_the_same_plan(pruned: Path, inputs: Path, tmp_path: Path) -> None:
    pipeline.prune(prune_config(inputs, tmp_path / "masked", shrink=False, dropout=0.0))
    pipeline.prune(prune_config(inputs, tmp_path / "cut", dropout=0.0))
    assert (tmp_path / "masked" / "plan.json").read_text() == (tmp_path / "cut" / "plan.json").read_text()
    assert shapes(tmp_path / "masked") == shapes(pruned)


def test_the_page_shows_the_run_and_the_report_says_what_it_shows(pruned: Path) -> None:
    report, page = read_report(pruned), (pruned / "report.html").read_text(encoding="utf-8")
    assert f"{report['ratio_reached']:.4f} (requested: 0.5)" in page
    dense, small = report["speed"]["rows"]["dense"], report["speed"]["rows"]["pruned"]
    assert (dense["parameters"], small["parameters"]) == (report["parameters"]["dense"], report["parameters"]["pruned"])
    assert dense["macs_per_token"] > small["macs_per_token"]
    assert small["file_bytes"] == (pruned / "model.safetensors").stat().st_size
    assert report["speed"]["protocol"]["order"] == "one after the other"
    assert 1 <= len(report["examples"]) <= 3
    assert all(set(example) == {"prompt", "dense", "pruned"} and example["prompt"] for example in report["examples"])
    assert any(example["dense"] != example["pruned"] for example in report["examples"])
