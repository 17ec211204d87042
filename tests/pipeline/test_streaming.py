"""What is stored is read tensor by tensor, by the names of the model; sizes of files are checked."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from loraprune.models.stored_tensors import stored_tensors
from tests.pipeline.cases import prune_config
from tests.tiny import tiny_model


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
