"""Merge LoRA into its weights: after a run, of one projection to check that it can be done, and of a finished adapter.

Knows nothing about how the base was loaded.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from loraprune.errors import CheckpointError
from loraprune.models.adapters.cuts import ADAPTER
from loraprune.models.adapters.lora import KEPT_WEIGHTS, projection, zero_weights_
from loraprune.models.adapters.modules import find_module
from loraprune.models.folder import ADAPTER_WEIGHTS
from loraprune.models.quantised import dense_layer, forget_quantiser, kind_of
from loraprune.models.streaming import is_streamed


def merge_adapter(model: PreTrainedModel, folder: Path) -> tuple[PreTrainedModel, frozenset[str]]:
    """Merge a LoRA adapter as PEFT does; `model` must not be used afterwards.

    Returns:
        The merged model, and the paths of modules that the adapter stores completely, such as a head.

    Raises:
        CheckpointError: if the adapter belongs to another base model.
    """
    config = LoraConfig.from_pretrained(str(folder))
    config.base_model_name_or_path = model.name_or_path  # else PEFT warns that the name is another one
    tensors = load_file(folder / ADAPTER_WEIGHTS)
    try:
        adapted = get_peft_model(model, config)
        needed = get_peft_model_state_dict(adapted, save_embedding_layers=False).keys()
        read: Any = set_peft_model_state_dict(adapted, tensors)
        merged = adapted.merge_and_unload(safe_merge=True)
    except (ValueError, RuntimeError, KeyError, AttributeError) as error:
        why = " ".join(str(error).split())[:200]
        raise CheckpointError(f"the adapter in {folder} does not fit this base model ({why}); name its own") from None
    lacking = sorted(needed - tensors.keys())
    if lacking or read.unexpected_keys:
        wrong = f"lacks {lacking[0]}" if lacking else f"holds {read.unexpected_keys[0]}, which the base model lacks"
        raise CheckpointError(f"the adapter in {folder} does not fit this base model (it {wrong}); name its own")
    assert isinstance(merged, PreTrainedModel)
    whole = {
        path.removeprefix("base_model.model.")
        for name in tensors
        if (path := name.rpartition(".")[0]) and ".lora_" not in name
    }
    return merged.requires_grad_(True), frozenset(whole)


def quantised_adapters(model: nn.Module) -> list[str]:
    """Return the paths of the projections that carry LoRA on a quantised weight."""
    return [
        path for path, module in model.named_modules()
        if isinstance(module, LoraLayer) and kind_of(module.get_base_layer())
    ]  # fmt: skip


@torch.no_grad()
def merging_error(model: nn.Module, path: str, *, seed: int = 0) -> float | None:
    """Merge one projection by PEFT, with random factors, and undo it; every weight ends as it was.

    Returns:
        The largest difference from W0 + scaling * B A, relative to the largest weight; None for a quantised one, which PEFT does not
        merge here.
    """
    proj: Any = projection(model, path)
    module: Any = find_module(model, path)
    if kind_of(proj.layer):
        return None
    assert isinstance(module, LoraLayer)
    before, b = proj.layer.weight.detach().clone(), proj.lora_b.detach().clone()
    draw = torch.Generator().manual_seed(seed)
    proj.lora_b.copy_(torch.randn(b.shape, generator=draw))
    try:
        expected = proj.merged_rows(0, proj.shape[0])
        module.merge(safe_merge=True)
        found = proj.base_rows(0, proj.shape[0]).to(expected, copy=True)  # unmerging changes the weight in place
        module.unmerge()
    finally:
        proj.lora_b.copy_(b)
        proj.layer.weight.copy_(before)
    return float((found - expected).abs().max() / expected.abs().max())


def dequantise_adapted_(model: PeftModel, dtype: torch.dtype) -> frozenset[str]:
    """Dequantise the base weights below LoRA; `merge_lora` needs the paths that are returned."""
    base = model.get_base_model()
    found = quantised_adapters(base)
    for path in found:
        proj = projection(base, path)
        module = find_module(base, path)
        module.base_layer = dense_layer(proj.layer, proj.base_rows(0, proj.shape[0]).to(dtype))
    return frozenset(found)


def merge_lora(model: PeftModel, dequantised: Collection[str] = ()) -> PreTrainedModel:
    """Add every scaled B A to its base weight and return the plain model; `model` must not be used afterwards.

    Quantised weights are dequantised in the result, in the dtype of the rest of the model; `dequantised` names the layers that
    were quantised when LoRA was attached and are no longer. Masked weights (see
    `loraprune.pruning.sparsity.masks`) are zero, and their masks are gone.
    """
    model.set_adapter(ADAPTER)  # a second one is what trainers of preferences compare with
    base = model.get_base_model()
    assert isinstance(base, PreTrainedModel)
    for path in {*quantised_adapters(base), *dequantised}:
        proj = projection(base, path)
        dense = dense_layer(proj.layer, proj.merged_rows(0, proj.shape[0]).to(base.dtype))
        base.set_submodule(path, dense)
    # Layers are on disk where nothing is trained: B is zero, and there is nothing to merge.
    merged = model.unload() if is_streamed(base) else model.merge_and_unload(progressbar=False)
    assert isinstance(merged, PreTrainedModel)
    forget_quantiser(merged)
    for layer in merged.modules():
        if KEPT_WEIGHTS in layer._buffers:
            zero_weights_(layer, layer.get_buffer(KEPT_WEIGHTS))
            delattr(layer, KEPT_WEIGHTS)
    return merged
