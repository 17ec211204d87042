"""Merge a finished adapter into its base model, so that a tuned model can be pruned.

Knows nothing about how the base was loaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import PreTrainedModel

from loraprune.errors import CheckpointError
from loraprune.models.folder import ADAPTER_WEIGHTS


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
