"""Every kind of target is reached, with every criterion and way to train."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

from loraprune import pipeline
from loraprune.commands.tables.results import report as print_report
from loraprune.config.target import TARGETS
from loraprune.training import setup
from tests.pipeline.cases import (
    STEP,
    check_loads_anywhere,
    count,
    one_step,
    prune_config,
    read_report,
)
from tests.samples import save_tiny


def test_parameters_is_a_ceiling_reached_to_one_step(inputs: Path, tmp_path: Path) -> None:
    pipeline.prune(prune_config(inputs, tmp_path / "out", parameters="27k"))
    report = read_report(tmp_path / "out")
    step = STEP * 3 * 32 * 2
    assert abs(count(tmp_path / "out") - 27_000) <= step
    assert report["ratio_requested"] is None
    assert report["target"] == {**dict.fromkeys(TARGETS), "parameters": "27k"}


def test_a_file_is_at_most_as_large_as_asked(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    result = pipeline.prune(prune_config(inputs, tmp_path / "out", file_size="110kB", steps=2))
    written, report = (tmp_path / "out" / "model.safetensors").stat().st_size, read_report(tmp_path / "out")
    step = 4 * STEP * 3 * 32 * 2
    assert 110_000 - 2 * step <= written <= report["reached"]["file_bytes"] <= 110_000
    assert (inputs / "model" / "model.safetensors").stat().st_size > 110_000  # the control: before
    assert report["reached"]["file_bytes"] - written < 1000  # the header is an upper bound
    print_report(result)
    assert f"{report['reached']['file_bytes']:,} bytes in float32 (asked 110kB)" in capsys.readouterr().out


@pytest.mark.parametrize(("heads", "ffn"), [(2, 40), (4, 24), (2, None), (None, 17)])
def test_heads_and_ffn_are_kept_exactly(heads: int | None, ffn: int | None, inputs: Path, tmp_path: Path) -> None:
    pipeline.prune(prune_config(inputs, tmp_path / "out", heads=heads, ffn=ffn, steps=3))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["num_attention_heads"] == (heads or 4)
    assert config["num_key_value_heads"] == (heads or 4) // 2
    assert config["intermediate_size"] == (ffn or 64)


@pytest.mark.parametrize("ratio", [0.0, 0.2, 0.7])
def test_other_ratios_are_reached_to_one_step(ratio: float, inputs: Path, tmp_path: Path) -> None:
    pipeline.prune(prune_config(inputs, tmp_path / "out", ratio=ratio, steps=3))
    report = read_report(tmp_path / "out")
    reached = 1 - count(tmp_path / "out", prunable=True) / count(inputs / "model", prunable=True)
    assert report["ratio_reached"] == pytest.approx(reached, abs=1e-12)
    assert abs(reached - ratio) <= one_step(tmp_path / "out", inputs / "model")


@pytest.mark.parametrize("criterion", ["lora", "gate", "magnitude", "random"])
def test_every_criterion_ends_in_a_folder(criterion: str, inputs: Path, tmp_path: Path) -> None:
    report = pipeline.prune(prune_config(inputs, tmp_path / "out", criterion=criterion, steps=3))
    assert report.values["verification"]["masked_vs_sliced"] <= 1e-4
    assert count(tmp_path / "out") == report.values["parameters"]["pruned"]


def test_one_step_is_enough_to_prune(inputs: Path, tmp_path: Path) -> None:
    report = pipeline.prune(prune_config(inputs, tmp_path / "out", steps=1))
    assert abs(report.values["ratio_reached"] - 0.5) <= one_step(tmp_path / "out", inputs / "model")


def test_bfloat16_accumulation_and_checkpointing_work_together(inputs: Path, tmp_path: Path) -> None:
    config = prune_config(
        inputs, tmp_path / "out", dtype="bfloat16", accumulate=2, batch=2, checkpointing=True, steps=4
    )
    report = pipeline.prune(config)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    assert abs(report.values["ratio_reached"] - 0.5) <= one_step(tmp_path / "out", inputs / "model")


def test_head_count_that_llama_refuses_is_saved_as_a_model_that_loads(inputs: Path, tmp_path: Path) -> None:
    save_tiny(tmp_path / "model", num_attention_heads=8, num_key_value_heads=8, head_dim=4)
    config = prune_config(inputs, tmp_path / "out", model=str(tmp_path / "model"), heads=3, ffn=32, steps=3)
    pipeline.prune(config)
    assert check_loads_anywhere(tmp_path / "out")["class"].endswith(".MistralForCausalLM")


def test_no_two_models_are_in_memory_while_a_save_is_verified(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[int] = []
    load = setup.load_with_head

    def counting(*arguments: Any, **options: Any) -> Any:
        alive.append(
            sum(isinstance(thing, PreTrainedModel) and thing.device.type != "meta" for thing in gc.get_objects())
        )
        return load(*arguments, **options)

    monkeypatch.setattr(setup, "load_with_head", counting)
    before = sum(isinstance(thing, PreTrainedModel) for thing in gc.get_objects())
    pipeline.prune(prune_config(inputs, tmp_path / "out", steps=2))
    # At the start, what was saved, the dense one (filled from the files tensor by tensor), the one from disk.
    assert [count - before for count in alive] == [0, 0, 0, 0]
