"""A real small model, pruned by one process, by two with DDP and by two with FSDP2: the same verified result, loadable anywhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from loraprune import LoRAPruneConfig
from loraprune.errors import ConfigError
from loraprune.families import find_groups
from loraprune.pruning.sparsity.sparsifier import check_sparsity
from loraprune.pruning.target import check_recovery
from loraprune.training import setup
from loraprune.training.setup import check_base
from tests.pipeline.cases import read_report
from tests.runtime.distributed.processes import FSDP2, command, run
from tests.tiny import tiny_model

LAUNCHES: Mapping[str, Mapping[str, str]] = {"DDP": {}, "FSDP2": FSDP2}
BASES = {"none": 1e-5, "8bit": 1e-5, "4bit": 1e-5}
"""how the base is held -> by how much a weight may be another one"""
FIGURES = ("ratio_reached", "parameters", "units", "steps")


def prune(shared: Path, output: Path, *, batch: int, more: tuple[str, ...] = ()) -> list[str]:
    text = shared / "data" / "text" / "tinystories" / "valid.jsonl"
    return [
        "prune", "--model", str(shared / "models" / "llama-stories-260k"), "--data", str(text), "--output", str(output),
        "--recipe", "paper", "--ratio", "0.5", "--steps", "6",
        "--rows", "64", "--batch", str(batch), "--length", "64", "--lr", "1e-3", "--dropout", "0",
        "--device", "cpu", "--html", "false", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def alone(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return what gives what one process makes of a base, quantised or not."""

    @cache
    def one(base: str) -> Path:
        folder = tmp_path_factory.mktemp(base)
        ended = run(command(prune(shared, folder / "out", batch=8, more=("--quantize", base))), folder, count=1)
        assert ended.codes == [0], ended.stderr
        return folder / "out"

    return one


@pytest.mark.parametrize("base", ["none", pytest.param("8bit", marks=pytest.mark.slow), "4bit"])
@pytest.mark.parametrize("launcher", LAUNCHES)
def test_two_processes_give_what_one_gives(
    launcher: str, base: str, alone: Callable[..., Path], shared: Path, tmp_path: Path
) -> None:
    if base != "none":
        pytest.importorskip("bitsandbytes")
    one = alone(base)
    output, more = tmp_path / "out", ("--quantize", base)
    ended = run(command(prune(shared, output, batch=4, more=more)), tmp_path, launcher=LAUNCHES[launcher])
    assert ended.codes == [0, 0], ended.stderr
    assert ended.stderr[1] == ""
    assert "masked during training" not in ended.stderr[0]
    assert (output / "plan.json").read_bytes() == (one / "plan.json").read_bytes()
    mine, theirs = load_file(output / "model.safetensors"), load_file(one / "model.safetensors")
    assert {name: value.shape for name, value in mine.items()} == {name: value.shape for name, value in theirs.items()}
    assert max((value - theirs[name]).abs().max().item() for name, value in mine.items()) < BASES[base]
    found, expected = read_report(output), read_report(one)
    assert {name: found[name] for name in FIGURES} == {name: expected[name] for name in FIGURES}
    assert (found["processes"], expected["processes"]) == (2, 1)
    assert found["verification"]["masked_vs_sliced"] < found["verification"]["tolerance"]
    model = AutoModelForCausalLM.from_pretrained(output)
    with torch.no_grad():
        assert torch.isfinite(model(torch.arange(3, 20)[None]).logits).all()


@pytest.mark.parametrize("options", [{"compensate": True}, {"local": 2}, {"sparsity": "2:4"}], ids=str)
def test_what_needs_whole_weights_is_refused_to_fsdp(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    groups = find_groups(model.config)
    settings = LoRAPruneConfig(**options)

    def check() -> None:
        check_sparsity(model, groups, settings) if settings.sparsity else check_recovery(groups, settings)

    check()
    for name, value in FSDP2.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="launch without --use_fsdp"):
        check()


def test_a_quantised_base_needs_an_accelerate_that_leaves_layers_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    groups, device = find_groups(tiny_model("llama").config), torch.device("cpu")
    monkeypatch.setattr(setup, "LEAVES_WHOLE", "1000")
    check_base("8bit", groups, device)
    for name, value in FSDP2.items():
        monkeypatch.setenv(name, value)
    check_base("none", groups, device)
    with pytest.raises(ConfigError, match="install accelerate 1000 or newer, or launch without --use_fsdp"):
        check_base("8bit", groups, device)


@pytest.mark.parametrize(
    "more", [("--teacher", "cache"), ("--compensate", "true", "--calibration", "256")], ids=lambda more: more[0]
)
def test_recovery_is_the_same_in_both(more: tuple[str, ...], shared: Path, tmp_path: Path) -> None:
    runs = {}
    for count, batch in ((1, 8), (2, 4)):
        output = tmp_path / str(count)
        ended = run(command(prune(shared, output, batch=batch, more=more)), tmp_path, count=count)
        assert set(ended.codes) == {0}, ended.stderr
        runs[count] = output
    assert (runs[1] / "plan.json").read_bytes() == (runs[2] / "plan.json").read_bytes()
    mine, theirs = (load_file(output / "model.safetensors") for output in runs.values())
    assert max((value - theirs[name]).abs().max().item() for name, value in mine.items()) < 1e-3
