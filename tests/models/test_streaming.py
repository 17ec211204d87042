"""Layers that are on disk compute what layers in memory do, are there only while they are at work, and keep what is written to them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

from loraprune.errors import ConfigError, NumericsError
from loraprune.families import find_groups
from loraprune.models.loading import load_with_head
from loraprune.models.saving import cast_weights_, round_weights_, save_model
from loraprune.models.streaming import at_hand, is_streamed
from tests.tiny import logits, tiny_model, tokens

CPU = torch.device("cpu")
IDS = tokens(3)


def saved(folder: Path, variant: str = "llama", **options: Any) -> str:
    dense: Any = tiny_model(variant)
    dense.save_pretrained(folder, **options)
    return str(folder)


def streamed(folder: str, **options: Any) -> Any:
    return load_with_head(folder, None, device=CPU, streamed=True, **options)[0]


def held(model: nn.Module) -> set[str]:
    """Return the layers whose weights are in memory."""
    inside = {name: tensor for name, tensor in model.named_parameters() if ".layers." in name or ".h." in name}
    return {name.rpartition(".")[0] for name, each in inside.items() if each.untyped_storage().nbytes() > each.itemsize}


@pytest.mark.parametrize("variant", ["llama", "llama-tied", "qwen3", "gpt2", "bert"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outputs_are_those_of_the_model_in_memory(variant: str, dtype: torch.dtype, tmp_path: Path) -> None:
    folder = saved(tmp_path, variant, max_shard_size="30KB")
    whole, on_disk = load_with_head(folder, None, device=CPU, dtype=dtype)[0].eval(), streamed(folder, dtype=dtype)
    assert is_streamed(on_disk)
    assert not is_streamed(whole)
    assert torch.equal(logits(on_disk, IDS), logits(whole, IDS))
    assert {name: (each.shape, each.dtype) for name, each in on_disk.named_parameters()} == {
        name: (each.shape, each.dtype) for name, each in whole.named_parameters()
    }
    assert on_disk.num_parameters() == whole.num_parameters()


def test_one_layer_is_there_at_a_time(tmp_path: Path) -> None:
    model = streamed(saved(tmp_path))
    seen: list[set[str]] = []
    for layer in model.model.layers:
        layer.mlp.register_forward_hook(lambda *_: seen.append(held(model)))
    assert not held(model)
    logits(model, IDS)
    assert [len({path.split(".")[2] for path in paths}) for paths in seen] == [1] * len(model.model.layers)
    assert not held(model)


def test_what_is_read_or_written_by_mistake_shows(tmp_path: Path) -> None:
    model = streamed(saved(tmp_path))
    layer = model.model.layers[0].mlp.up_proj
    x = torch.randn(2, layer.in_features)
    with torch.no_grad():
        assert layer(x).isnan().all()
        with pytest.raises(RuntimeError, match="single memory location"):
            layer.weight.mul_(2)
        with at_hand(layer):  # the control
            assert layer(x).isfinite().all()


def test_what_is_written_stays_and_the_checkpoint_does_too(tmp_path: Path) -> None:
    model = streamed(saved(tmp_path))
    before = logits(model, IDS)
    layer = model.model.layers[1].mlp.down_proj
    with torch.no_grad():
        for write, times in ((False, 2.0), (True, 3.0), (True, 5.0)):
            with at_hand(layer, write=write):
                layer.weight.mul_(times)
    with at_hand(layer):
        dense: Any = tiny_model("llama")
        assert torch.allclose(layer.weight, 15 * dense.model.layers[1].mlp.down_proj.weight)
    assert not torch.allclose(logits(model, IDS), before)
    assert torch.equal(logits(streamed(str(tmp_path)), IDS), before)


def test_weights_are_rounded_and_saved_as_those_in_memory(tmp_path: Path) -> None:
    folder = saved(tmp_path / "dense", "llama-tied")
    found: dict[bool, dict[str, torch.Tensor]] = {}
    for on_disk in (False, True):
        model: Any = load_with_head(folder, None, device=CPU, streamed=on_disk)[0]
        out = tmp_path / str(on_disk)
        groups, config = find_groups(model.config), copy.deepcopy(model.config)
        round_weights_(model, torch.bfloat16)
        with at_hand(model.model.layers[0]):
            rounded = model.model.layers[0].mlp.up_proj.weight.detach().clone()
        cast_weights_(model, torch.bfloat16)
        assert bool(held(model)) != on_disk
        counts = {group.name: group.units for group in groups}
        save_model(model, out, config=config, groups=groups, counts=counts, dtype=torch.bfloat16, max_shard_size="20KB")
        found[on_disk] = {name: each for file in out.glob("*.safetensors") for name, each in load_file(file).items()}
        assert torch.equal(found[on_disk]["model.layers.0.mlp.up_proj.weight"].float(), rounded)
        assert AutoModelForCausalLM.from_pretrained(out).dtype == torch.bfloat16
        assert len(list(out.glob("*.safetensors"))) > 2
    assert found[True].keys() == found[False].keys()
    assert all(torch.equal(found[True][name], tensor) for name, tensor in found[False].items())


def test_checkpoints_that_cannot_be_streamed_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.0.mlp.up_proj.weight"
    for changed, error, message in (
        (
            {"renamed" if each == name else each: tensor for each, tensor in tensors.items()},
            ConfigError,
            f"no file has {name}",
        ),
        (tensors | {name: torch.full_like(tensors[name], torch.nan)}, NumericsError, f"{name} holds NaN"),
    ):
        save_file(changed, file, {"format": "pt"})
        with pytest.raises(error, match=message):
            streamed(folder)
    save_file(tensors, file, {"format": "pt"})
    streamed(folder)  # the control
    with pytest.raises(ConfigError, match=r"--base streamed --model org/name: layers are read from .* a folder"):
        streamed("org/name", original=AutoModelForCausalLM.from_pretrained(folder).config)
