"""Layer-wise folders on the command line: they work like others, and they and stock ones can be padded."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from loraprune import cli
from loraprune.api import save_pruned
from loraprune.config.pruning import LoRAPruneConfig
from loraprune.data import load_rows
from loraprune.evaluation.perplexity import perplexity
from loraprune.families import find_groups
from loraprune.models.loading import from_pretrained
from loraprune.models.opening import load_tokenizer
from loraprune.pruning import target
from loraprune.pruning.allocation import Space
from tests import fitting
from tests.cli.cases import Case, refused, run
from tests.samples import tiny_llama
from tests.tiny import logits, relative, tokens


def test_looking_and_judging_need_no_flag(layerwise: Path, case: Case, capfd: pytest.CaptureFixture[str]) -> None:
    model = ["--model", str(layerwise)]
    found = run(capfd, "inspect", *model)
    assert found["family"] == "loraprune_llama"
    assert [kind["units"] for kind in found["kinds"]] == [
        [1, 2],
        [24, 40],
        [2, 4],
    ]  # key-value heads, channels, query heads
    assert "trust_remote_code" in found["formats"]["layerwise"]
    assert found["parameters"] == from_pretrained(layerwise).num_parameters()
    measured = run(capfd, "evaluate", *model, "--data", str(case.text), "--length", "32", "--device", "cpu")
    rows = load_rows(str(case.text), load_tokenizer(str(layerwise)), length=32)
    expected = math.exp(perplexity(from_pretrained(layerwise), rows).nll)
    assert measured["models"][str(layerwise)]["perplexity"] == pytest.approx(expected, rel=1e-5)
    timing = ["--batches", "[1]", "--length", "16", "--tokens", "4", "--repeats", "1", "--device", "cpu"]
    speed = run(capfd, "benchmark", *model, "--against", str(case.model), *timing)
    assert speed["ratios"][str(layerwise)]["parameters"] < 1


def test_tables_show_layerwise_models_and_exports(
    layerwise: Path, case: Case, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["inspect", "--model", str(layerwise)]) == 0
    assert "loads with modelling code" in capfd.readouterr().out
    assert cli.main(["export", "--model", str(layerwise), "--output", str(case.output)]) == 0
    assert "source vs exported" in capfd.readouterr().out
    equal = ["--kinds", "all", "--heads", "2", "--ffn", "16"]
    assert cli.main(["plan", "--model", str(layerwise), *equal]) == 0
    assert "saved as" in capfd.readouterr().out


def test_finetuning_keeps_the_widths_and_says_how_to_load_the_result(
    layerwise: Path, case: Case, capfd: pytest.CaptureFixture[str]
) -> None:
    report = run(capfd, *case.arguments("finetune", model=str(layerwise)))
    assert report["saved_as"]["model_type"] == "loraprune_llama"
    assert report["saved_as"]["load"].startswith("loraprune.from_pretrained(folder), or ")
    assert report["verification"]["sliced_vs_reloaded"] <= report["verification"]["tolerance"]
    assert report["parameters"]["pruned"] == from_pretrained(layerwise).num_parameters()
    assert "trust_remote_code=True)" in (case.output / "README.md").read_text(encoding="utf-8")
    assert (case.output / "modeling_loraprune.py").is_file()


@pytest.fixture
def uneven_goal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every run aim at other widths in each layer."""

    def goal_counts(space: Space, config: LoRAPruneConfig, ratio: float) -> dict[str, int]:
        return {group.name: max(1, group.units // (2 + place)) for place, group in enumerate(space.groups)}

    monkeypatch.setattr(target, "goal_counts", goal_counts)


@pytest.mark.usefixtures("uneven_goal")
def test_a_run_that_ends_with_uneven_layers_verifies_and_saves_them(
    case: Case, capfd: pytest.CaptureFixture[str]
) -> None:
    steps = ["--steps", "10"]  # the last of an option counts
    report = run(capfd, *case.arguments(), *steps, "--allocation", "uniform")
    assert report["saved_as"]["model_type"] == "loraprune_llama"
    assert report["verification"]["masked_vs_sliced"] <= report["verification"]["tolerance"]
    assert [entry["kept"] for entry in report["units"].values()] == [1, 21, 1, 12]
    loaded = from_pretrained(case.output)
    assert loaded.num_parameters() == report["parameters"]["pruned"]
    assert find_groups(loaded.config)[1].units == 21
    run(capfd, "export", "--model", str(case.output), "--output", str(case.root / "padded"))


@pytest.mark.usefixtures("uneven_goal")
def test_save_pruned_saves_uneven_layers_too(tmp_path: Path) -> None:
    model, callback, _ = fitting.prune(tmp_path / "run", fitting.config(), steps=10)
    expected = logits(model, tokens())
    save_pruned(callback, tmp_path / "small")
    assert relative(expected, logits(from_pretrained(tmp_path / "small"), tokens())) < 1e-4
    assert {"plan.json", "scores.safetensors", "modeling_loraprune.py"} <= {
        p.name for p in (tmp_path / "small").iterdir()
    }


def test_pruning_on_to_equal_widths_gives_a_stock_model(
    layerwise: Path, case: Case, capfd: pytest.CaptureFixture[str]
) -> None:
    report = run(capfd, *case.arguments(model=str(layerwise)), "--kinds=all", "--heads", "2", "--ffn", "16")
    assert report["saved_as"]["model_type"] == "llama"
    assert "without a flag" in report["saved_as"]["load"]
    assert AutoModelForCausalLM.from_pretrained(case.output).num_parameters() == report["parameters"]["pruned"]
    shutil.rmtree(case.output)
    refused(case.arguments(model=str(layerwise), ratio="0.2"), capfd, "layers differ", root=case.root)


def test_the_padded_export_loads_with_no_flag(layerwise: Path, case: Case, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["export", "--model", str(layerwise), "--format", "padded", "--output", str(case.output)]
    found = run(capfd, *arguments)
    assert found["verification"]["source_vs_exported"] < 1e-5
    assert json.loads((case.output / "export.json").read_text())["format"] == "padded"
    padded = AutoModelForCausalLM.from_pretrained(case.output)
    dense = tiny_llama()
    assert padded.num_parameters() == dense.num_parameters()
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        one, other = padded(input_ids=ids).logits, from_pretrained(layerwise)(input_ids=ids).logits
    torch.testing.assert_close(one, other)
    refused(arguments, capfd, "exists", "--overwrite", root=case.root)
    run(capfd, *arguments, "--overwrite")


def test_a_stock_folder_is_padded_too_and_keeps_its_precision(case: Case, capfd: pytest.CaptureFixture[str]) -> None:
    run(capfd, *case.arguments(), "--heads", "2", "--ffn", "16", "--dtype", "bfloat16")
    run(capfd, "export", "--model", str(case.output), "--output", str(case.root / "padded"))
    padded = AutoModelForCausalLM.from_pretrained(case.root / "padded")
    assert (padded.config.num_attention_heads, padded.config.intermediate_size) == (4, 64)
    assert padded.dtype == AutoModelForCausalLM.from_pretrained(case.output).dtype == torch.bfloat16
