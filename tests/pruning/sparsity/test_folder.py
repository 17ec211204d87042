"""What a run with zeros instead of removed units leaves: a stock folder with exactly its zeros."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

from loraprune import cli, save_pruned
from tests import fitting
from tests.pruning.sparsity.cases import run, saved
from tests.samples import save_tiny, write_text
from tests.tiny import logits, relative, tokens


@pytest.mark.parametrize(("pattern", "kept", "block"), [("2:4", 2, 4), ("4:8", 4, 8), ("1:4", 1, 4)])
def test_every_block_of_the_saved_file_has_exactly_its_zeros(
    pattern: str, kept: int, block: int, inputs: Path, tmp_path: Path
) -> None:
    report = run(inputs, tmp_path / "out", sparsity=pattern)
    dense, weights = saved(inputs / "model"), saved(tmp_path / "out")
    assert {name: w.shape for name, w in weights.items()} == {name: w.shape for name, w in dense.items()}
    assert len(weights) == 14
    for weight in weights.values():
        assert ((weight.reshape(len(weight), -1, block) != 0).sum(-1) == kept).all()
    zeros, total = sum(int((w == 0).sum()) for w in weights.values()), sum(w.size for w in weights.values())
    ratio = 1 - kept / block
    assert zeros == total * ratio
    assert report["sparsity"] == {
        "pattern": pattern, "ratio_requested": ratio, "ratio_reached": ratio, "zeros": zeros, "weights": total,
    }  # fmt: skip
    assert report["ratio_requested"] == report["ratio_reached"] == ratio
    assert report["parameters"]["pruned"] == report["parameters"]["dense"]
    assert report["parameters"]["prunable_pruned"] == total - zeros
    others = load_file(tmp_path / "out" / "model.safetensors").keys() - weights.keys()
    assert all((load_file(tmp_path / "out" / "model.safetensors")[name] != 0).any() for name in others)


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.8])
def test_unstructured_reaches_the_ratio_in_every_matrix(ratio: float, inputs: Path, tmp_path: Path) -> None:
    report = run(inputs, tmp_path / "out", sparsity="unstructured", ratio=ratio)
    for weight in saved(tmp_path / "out").values():
        assert (weight == 0).sum() == round(weight.size * ratio)
    assert report["sparsity"]["ratio_requested"] == ratio
    assert report["ratio_reached"] == pytest.approx(ratio, abs=1e-3)


@pytest.mark.parametrize(
    ("criterion", "changes"),
    [
        ("lora", {"dtype": "bfloat16", "checkpointing": True}),
        ("magnitude", {"accumulate": 2}),
        ("random", {"steps": 1}),
        ("sketch", {}),
    ],
)
def test_every_elementwise_criterion_ends_in_a_folder(
    criterion: str, changes: dict[str, Any], inputs: Path, tmp_path: Path
) -> None:
    report = run(inputs, tmp_path / "out", criterion=criterion, **changes)
    assert report["ratio_reached"] == 0.5
    assert report["verification"]["sliced_vs_reloaded"] <= report["verification"]["tolerance"]


def test_the_folder_loads_anywhere_and_its_run_can_be_repeated(inputs: Path, tmp_path: Path) -> None:
    run(inputs, tmp_path / "out")
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert not {"plan.json", "scores.safetensors"} & {path.name for path in (tmp_path / "out").iterdir()}
    again = ["--config", str(tmp_path / "out" / "run.yaml"), "--output", str(tmp_path / "again"), "--json"]
    assert cli.main(["prune", *again]) == 0
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        tmp_path / "out" / "model.safetensors"
    ).read_bytes()


def test_a_trainer_of_ones_own_saves_what_it_trained(tmp_path: Path) -> None:
    settings = fitting.config(sparsity="4:8", dropout=0.1)
    model, callback, _ = fitting.prune(tmp_path / "trainer", settings, steps=6)
    before = logits(model, tokens())
    save_pruned(callback, tmp_path / "out")
    assert relative(before, logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out"), tokens())) < 2e-5
    for weight in saved(tmp_path / "out").values():
        assert ((weight.reshape(len(weight), -1, 8) != 0).sum(-1) == 4).all()


@pytest.mark.filterwarnings("ignore:The PyTorch API of SparseSemiStructuredTensor is in prototype stage")
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_saved_projection_runs_in_the_gpus_sparse_format(dtype: torch.dtype, tmp_path: Path) -> None:
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("no CUDA device of compute capability 8.0 or more: it has the semi-structured format")
    save_tiny(tmp_path / "model", hidden_size=256, intermediate_size=512)
    write_text(tmp_path / "text.txt", 200)
    run(tmp_path, tmp_path / "out", device="cuda")
    weights = {
        name: weight for name, weight in saved(tmp_path / "out").items() if min(weight.shape) >= 64
    }  # the format's tiles
    assert weights
    for name, weight in weights.items():
        dense = torch.from_numpy(weight).to("cuda", dtype)
        x = torch.randn(
            128, dense.shape[1], device="cuda", dtype=dtype, generator=torch.Generator("cuda").manual_seed(0)
        )
        found = torch.nn.functional.linear(x, torch.sparse.to_sparse_semi_structured(dense))
        assert relative(torch.nn.functional.linear(x, dense).float(), found.float()) < 1e-2, name
