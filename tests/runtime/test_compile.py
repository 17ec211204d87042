"""A compiled step prunes as an uncompiled one does, and what cannot be compiled is told first."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from loraprune import pipeline
from loraprune.config.training import FinetuneConfig, PruneConfig
from loraprune.errors import ConfigError
from loraprune.runtime import device
from tests.pipeline.cases import SHORT
from tests.samples import save_inputs

SRC = Path(__file__).resolve().parents[2] / "src"
ENVIRONMENT = os.environ | {"PYTHONPATH": str(SRC), "OMP_NUM_THREADS": "1", "TORCH_LOGS": "aot"}
"""with it torch.compile tells of every graph that it makes"""


def of_inputs(inputs: Path, output: Path, **changes: Any) -> dict[str, Any]:
    paths = {"model": str(inputs / "model"), "data": str(inputs / "text.txt"), "output": str(output)}
    return paths | SHORT | {"steps": 6, "dropout": 0.0, "html": False} | changes


@pytest.mark.slow
def test_a_compiled_step_gives_the_same_plan_and_weights(tmp_path: Path) -> None:
    """In a process of its own: the checks of types that tests put around every function are none that dynamo can read."""
    inputs, found = save_inputs(tmp_path), {}
    for compiled in ("false", "true"):
        options = of_inputs(
            inputs, tmp_path / compiled, compile=compiled, shrink="false", html="false", criterion="lora"
        )
        flags = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
        command = [sys.executable, "-W", "ignore", "-m", "loraprune", "prune", *flags]
        done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert ("aot_graphs" in done.stderr) is (compiled == "true")
        found[compiled] = (
            (tmp_path / compiled / "plan.json").read_bytes(),
            load_file(tmp_path / compiled / "model.safetensors"),
        )
    assert found["true"][0] == found["false"][0]
    for name, value in found["true"][1].items():
        assert torch.allclose(value, found["false"][1][name], atol=1e-5), name


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, "--compile true: a compiled graph needs fixed shapes, .* give --shrink false too"),
        ({"shrink": False, "quantize": "8bit"}, "--compile true --quantize 8bit: .* leave one of the two out"),
    ],
)
def test_what_changes_shapes_or_has_kernels_of_its_own_is_not_compiled(changes: dict[str, Any], told: str) -> None:
    FinetuneConfig(model="demo", data="stdlib", output="nowhere", compile=True)
    PruneConfig(model="demo", data="stdlib", output="nowhere", compile=True, shrink=False)
    with pytest.raises(ConfigError, match=told):
        PruneConfig(model="demo", data="stdlib", output="nowhere", compile=True, **changes)


def test_several_processes_and_a_missing_compiler_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = PruneConfig(**of_inputs(save_inputs(tmp_path), tmp_path / "out", compile=True, shrink=False))
    with monkeypatch.context() as patch:
        patch.setattr(device.shutil, "which", lambda name: None)
        with pytest.raises(ConfigError, match="needs a C\\+\\+ compiler"):
            pipeline.prune(config)
    with pytest.raises(ConfigError, match="--compile true --criterion gate: it scores by hooks"):
        pipeline.prune(replace(config, criterion="gate"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="--compile true: 2 processes"):
        device.check_compile(torch.device("cpu"))
