"""Whole runs with other adapters than plain LoRA: pruned, verified, saved, and refused where they cannot be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from loraprune import pipeline
from loraprune.config.training import FinetuneConfig
from tests.cli.cases import Case, refused, run
from tests.pipeline.cases import SHORT, check_loads_anywhere, prune_config

WEIGHT = "model.layers.0.self_attn.q_proj.weight"
RECOVERY: dict[str, Any] = {"compensate": True, "calibration": 512, "end_to_end": 2, "steps": 5}


@pytest.mark.parametrize(
    "options",
    [{"adapter": "dora"}, {"adapter": "pissa"}, {"adapter": "rslora", "lora_plus": 4.0}],
    ids=lambda o: o["adapter"],
)
def test_a_run_with_another_adapter_is_verified_and_loads_anywhere(
    options: dict[str, Any], inputs: Path, tmp_path: Path
) -> None:
    report = pipeline.prune(prune_config(inputs, tmp_path / "out", **RECOVERY, **options)).values
    assert report["verification"]["masked_vs_sliced"] <= 1e-4
    assert report["recovery"][0]["errors"]["refitted"] <= report["recovery"][0]["errors"]["removed"]
    check_loads_anywhere(tmp_path / "out")
    plain = prune_config(inputs, tmp_path / "plain", **RECOVERY)
    pipeline.prune(plain)
    found, other = (load_file(tmp_path / name / "model.safetensors")[WEIGHT] for name in ("out", "plain"))
    assert found.shape != other.shape or not (found - other).abs().max() < 1e-6  # the control


def test_finetuning_with_weights_that_moved_to_the_adapters_is_verified(inputs: Path, tmp_path: Path) -> None:
    paths = {"model": str(inputs / "model"), "data": str(inputs / "text.txt"), "output": str(tmp_path / "out")}
    report = pipeline.finetune(FinetuneConfig(**(paths | SHORT | {"adapter": "olora", "steps": 4}))).values
    assert report["perplexity"]["pruned"] < report["perplexity"]["dense"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--adapter", "pissa", "--quantize", "8bit"], ("--adapter pissa --quantize 8bit", "must not be quantised")),
        (["--adapter", "dora", "--quantize", "4bit"], ("--adapter dora --quantize 4bit", "norms of all rows")),
        (["--adapter", "dora", "--sparsity", "2:4"], ("--sparsity 2:4 --adapter dora", "zeros would change")),
        (["--adapter", "dora", "--depth", "true", "--allocation", "balanced"], ("--depth true --adapter dora",)),
        (["--adapter", "lorra"], ("--adapter", "lorra")), (["--lora-plus", "0.5"], ("--lora-plus 0.5", "at least 1")),
    ],
)  # fmt: skip
def test_a_combination_that_cannot_be_done_is_refused_in_one_line(
    options: list[str], words: tuple[str, ...], inputs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    if "--quantize" in options:
        pytest.importorskip("bitsandbytes")
    case = Case(inputs)
    arguments = [*case.arguments(output=str(tmp_path / "out")), *options]
    refused(arguments, capfd, *words, root=tmp_path)


@pytest.mark.parametrize(
    ("options", "words"),
    [(["--quantize", "8bit"], "--adapter dora --quantize 8bit"), (["--gpus", "2", "--sharding", "fsdp"], "fsdp")],
)
def test_plan_refuses_what_prune_does(
    options: list[str], words: str, inputs: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    plan = ["plan", "--model", str(inputs / "model"), "--ratio", "0.5", "--adapter", "dora"]
    refused([*plan, *options], capfd, words)
    assert run(capfd, *plan)["training_memory_bytes"]["adapters_and_optimiser"] > 0  # the control
