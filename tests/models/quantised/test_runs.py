"""Runs on quantised bases, from a folder to a folder that plain transformers loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from loraprune import cli, pipeline
from loraprune.config import base
from loraprune.config.training import FinetuneConfig, PruneConfig
from loraprune.errors import ConfigError, VerificationError
from loraprune.models.quantised import layers
from loraprune.models.quantised.forms import Nf4Blocks
from tests.fitting import config, prune
from tests.pipeline.cases import SHORT
from tests.samples import save_inputs

pytest.importorskip("bitsandbytes")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_inputs(tmp_path_factory.mktemp("inputs"))


def of_inputs(inputs: Path, output: Path, **changes: Any) -> dict[str, Any]:
    return (
        {"model": str(inputs / "model"), "data": str(inputs / "text.txt"), "output": str(output)}
        | SHORT
        | {"steps": 4}
        | changes
    )


def stories(shared: Path, work: Path, **changes: Any) -> PruneConfig:
    """Return a short run on a trained model of 260,000 parameters and a few of its own stories."""
    for name, lines in (("train", 60), ("valid", 12)):
        source = shared / "data" / "text" / "tinystories" / f"{name}.jsonl"
        (work / f"{name}.jsonl").write_text(
            "\n".join(source.read_text(encoding="utf-8").splitlines()[:lines]), encoding="utf-8"
        )
    paths = {"data": str(work / "train.jsonl"), "eval": str(work / "valid.jsonl"), "output": str(work / "out")}
    model = str(shared / "models" / "llama-stories-260k")
    return PruneConfig(
        model=model, **paths | SHORT | {"local": 0, "steps": 20, "length": 128, "rows": 80, "ratio": 0.5} | changes
    )


@pytest.fixture(scope="module")
def plain(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> float:
    """Return the perplexity of a pruned model whose base was not quantised."""
    report = pipeline.prune(stories(shared, tmp_path_factory.mktemp("plain"), compensate=True)).values
    return float(report["perplexity"]["pruned"])


@pytest.mark.parametrize("kind", ["8bit", "4bit"])
def test_a_real_model_is_pruned_as_well_as_without(kind: str, shared: Path, plain: float, tmp_path: Path) -> None:
    report = pipeline.prune(stories(shared, tmp_path, quantize=kind, compensate=True)).values
    assert report["ratio_reached"] == pytest.approx(0.5, abs=0.02)
    assert report["verification"]["masked_vs_sliced"] < 1e-4
    assert (
        report["perplexity"]["pruned"] < {"8bit": 1.4, "4bit": 1.45}[kind] * plain
    )  # only the plain base learns changes of rank 64
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.num_parameters() == report["parameters"]["pruned"]
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))


def test_wrong_scales_do_not_pass(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = layers._put

    def doubled(layer: Any, weight: Any) -> None:
        real(layer, Nf4Blocks(weight.packed, 2 * weight.absmax, weight.shape))

    def start(self: Any, *arguments: Any, **options: Any) -> Any:
        monkeypatch.setattr(layers, "_put", doubled)  # from here on, as loading must be right
        return fit(self, *arguments, **options)

    fit = pipeline.fit
    monkeypatch.setattr(pipeline, "fit", start)
    with pytest.raises(VerificationError):
        pipeline.prune(stories(shared, tmp_path, quantize="4bit", steps=3))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"quantize": "int8", "teacher": "8bit"},
        {"quantize": "4bit", "local": 2, "teacher": "copy", "checkpointing": True},
        {"quantize": "8bit", "sparsity": "2:4"},
        {"quantize": "4bit", "steps": 0, "rows": 16, "allocation": "balanced", "criterion": "gate"},
        {"quantize": "8bit", "rounds": 2},
        {"quantize": "4bit", "shrink": False, "optimizer": "adamw-8bit"},
    ],
    ids=str,
)
def test_what_a_run_can_do_it_can_do_on_a_quantised_base(changes: dict[str, Any], inputs: Path, tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    options = of_inputs(inputs, tmp_path / "out", calibration=512, **changes)
    report = pipeline.prune(PruneConfig(**options)).values
    assert report["verification"]["masked_vs_sliced"] < 1e-4
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.float32


def test_a_quantised_base_is_tuned_without_pruning(inputs: Path, tmp_path: Path) -> None:
    options = of_inputs(inputs, tmp_path / "out", quantize="4bit", optimizer="adamw-8bit", lr=1e-2, steps=12)
    report = pipeline.finetune(FinetuneConfig(**options))
    assert report.quality.pruned < 0.97 * report.quality.dense  # learnt
    dense, tuned = (
        AutoModelForCausalLM.from_pretrained(each).state_dict() for each in (inputs / "model", tmp_path / "out")
    )
    assert torch.equal(
        tuned["model.embed_tokens.weight"], dense["model.embed_tokens.weight"]
    )  # frozen, and not quantised
    name = "model.layers.0.mlp.up_proj.weight"
    assert (tuned[name] - dense[name]).norm() > 0.01 * dense[name].norm()  # 4 bits and what LoRA adds


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--quantize", "4bit"], "--quantize 4bit: bitsandbytes is not installed; pip install 'loraprune[quant]'"),
        (["--quantize", "int8"], "--quantize int8: torchao is not installed; pip install 'loraprune[quant]'"),
        (["--teacher", "8bit"], "--teacher 8bit: bitsandbytes is not installed"),
        (["--optimizer", "adamw-8bit", "--shrink", "false"], "--optimizer adamw-8bit: bitsandbytes is not installed"),
    ],
)
def test_an_absent_library_is_named_with_its_extra(
    flags: list[str],
    told: str,
    inputs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(base, "find_spec", lambda name: None)
    given = ["--model", str(inputs / "model"), "--data", str(inputs / "text.txt"), "--output", str(tmp_path / "out")]
    assert cli.main(["prune", *given, *flags]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"optimizer": "paged", "shrink": False}, "--optimizer paged: it moves its state from a GPU to the CPU"),
        ({"dtype": "float16"}, "--dtype float16: its gradients need a loss scale"),
        ({"dtype": "tf32"}, "--dtype tf32: it needs a CUDA device"),
    ],
)
def test_what_this_device_cannot_do_is_told_first(
    changes: dict[str, Any], told: str, inputs: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=told):
        pipeline.prune(PruneConfig(**of_inputs(inputs, tmp_path / "out", **changes)))


def test_an_optimiser_whose_state_cannot_be_cut_needs_masks() -> None:
    with pytest.raises(ConfigError, match="--optimizer adamw-8bit: its state cannot be sliced"):
        PruneConfig(model="demo", data="stdlib", output="nowhere", optimizer="adamw-8bit")


def test_a_trainer_with_such_an_optimiser_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="AdamW of bitsandbytes: its state cannot be cut"):
        prune(tmp_path, config(), optim="adamw_8bit")
