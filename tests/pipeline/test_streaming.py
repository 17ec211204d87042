"""Verifying holds one model, saving at most the files beside it: counted, with what would be seen otherwise."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch

from loraprune import pipeline
from loraprune.footprint import LiveBytes
from loraprune.loading import load_model
from loraprune.stored import StoredTensors, stored_tensors
from tests.pipeline.cases import prune_config
from tests.samples import save_tiny
from tests.tiny import tiny_model

CPU = torch.device("cpu")
SHARD = 500_000


def watching(*present: torch.Tensor) -> LiveBytes:
    return LiveBytes(present, name=lambda _: "tensors")


@pytest.fixture(scope="module")
def wide(inputs: Path) -> Path:
    """Write a model in 16 bits whose weights outweigh its activations into a folder with a tokenizer."""
    folder = save_tiny(inputs / "wide", hidden_size=128, intermediate_size=768, num_hidden_layers=8)
    load_model(str(folder), device=CPU, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


def test_verifying_holds_one_model_and_saving_its_files_at_most(
    inputs: Path, wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peaks: dict[str, int] = {}
    save, verify = pipeline.save_model, pipeline._verify_saved

    def watched_save(model: Any, *arguments: Any, **options: Any) -> None:
        assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
        with watching(*model.state_dict().values()) as seen:
            save(model, *arguments, **options)
        peaks["save"] = seen.peak

    def watched_verify(*arguments: Any, **options: Any) -> Any:
        gc.collect()
        with watching() as seen:
            result = verify(*arguments, **options)
        peaks["verify"] = seen.peak
        return result

    monkeypatch.setattr(pipeline, "save_model", watched_save)
    monkeypatch.setattr(pipeline, "_verify_saved", watched_verify)
    config = prune_config(inputs, tmp_path / "out", model=str(wide), ratio=0.2, steps=2, max_shard_size="500KB")
    pipeline.prune(config)
    dense = sum(4 * tensor.numel() for tensor in StoredTensors.of(wide).values())  # it is computed with in 32 bits
    files = [file.stat().st_size for file in (tmp_path / "out").glob("model-*.safetensors")]
    assert len(files) > 3
    assert max(files) < 1.1 * SHARD
    assert peaks["save"] < 1.1 * sum(files)  # never one in 32 bits beside it
    assert peaks["verify"] < 1.4 * dense  # one matrix at a time is compared in 64 bits

    with watching() as two:  # the control: a dense and a saved model together are seen
        both = [load_model(str(folder), device=CPU, dtype=torch.float32) for folder in (wide, tmp_path / "out")]
    assert len(both) == 2
    assert two.peak > 1.5 * dense


@pytest.mark.parametrize("variant", ["llama-tied", "vit", "qwen3_moe"])
def test_what_is_stored_goes_by_the_names_of_the_model(variant: str, tmp_path: Path) -> None:
    model = tiny_model(variant)
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "spare").mkdir()
    stored = stored_tensors(model, tmp_path / "model", tmp_path / "spare")
    for name, tensor in model.named_parameters():
        assert torch.equal(stored[name], tensor), name
    assert any((tmp_path / "spare").iterdir()) == (variant != "llama-tied")
    other = stored.named({"new": next(iter(stored))})
    assert list(other) == ["new"]
    assert torch.equal(other["new"], stored[next(iter(stored))])


@pytest.mark.parametrize("size", ["5", "GB", "0GB", "-1MB", "1.5GB"])
def test_sizes_that_are_none_are_refused(inputs: Path, tmp_path: Path, size: str) -> None:
    with pytest.raises(Exception, match=f"--max-shard-size {size}: a whole number of"):
        prune_config(inputs, tmp_path / "out", max_shard_size=size)
