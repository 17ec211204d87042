"""Write checkpoints: a model without weights gets tensors and is saved.

Knows nothing about pruning.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Shaped
from torch import Tensor
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

from loraprune.errors import CheckpointError, LoraPruneError
from loraprune.models.auto_classes import auto_class, find_head, forget_code_
from loraprune.models.opening import quiet

logger = logging.getLogger(__name__)

MAX_SHARD_SIZE = "5GB"
"""most that a file of weights holds"""


def empty_model(config: PreTrainedConfig, *, head: str | None = None) -> PreTrainedModel:
    """Return the model of a configuration, by default with the head it names, without any memory for its weights.

    Raises:
        CheckpointError: if a layer-wise model's record does not describe it.
    """
    with torch.device("meta"), quiet():
        try:
            model = auto_class(head or find_head(config)).from_config(config)
        except LoraPruneError:
            raise
        except Exception as error:  # a damaged configuration makes the libraries raise nearly anything
            text = " ".join(str(error).split())[:300]
            raise CheckpointError(f"config.json: no model can be made of it ({type(error).__name__}: {text})") from None
    assert isinstance(model, PreTrainedModel)
    return model


def random_model(
    config: PreTrainedConfig, *, device: torch.device, dtype: torch.dtype, head: str | None = None
) -> PreTrainedModel:
    """Return the model of a configuration with random weights, such as to time it; what is drawn elsewhere does not change."""
    described = copy.deepcopy(config)  # which gets the dtype
    with torch.random.fork_rng([device] if device.type == "cuda" else []), device, quiet():
        model = auto_class(head or find_head(config)).from_config(described, dtype=dtype)
    assert isinstance(model, PreTrainedModel)
    return model


def fill_empty_(empty: PreTrainedModel, tensors: Mapping[str, Shaped[Tensor, "..."]]) -> None:
    """Give an empty model its tensors unchanged; a shared tensor may be named once or as often as it is used.

    Raises:
        CheckpointError: if names or shapes differ from the model's.
    """
    try:
        missing, unexpected = empty.load_state_dict(dict(tensors), strict=False, assign=True)
    except RuntimeError as error:  # its first line is a heading
        raise CheckpointError(
            f"{empty.config.model_type!r} has other shapes than the tensors: {str(error).splitlines()[-1].strip()}"
        ) from None
    if missing or unexpected:
        raise CheckpointError(
            f"{empty.config.model_type!r} has other tensors than the model: {(missing + unexpected)[:3]}"
        )
    empty.tie_weights()


def described_model(config: PreTrainedConfig, *, dtype: torch.dtype, head: str | None) -> PreTrainedModel:
    """Return the model of a configuration, which gets the `dtype`, without weights, to be saved."""
    config.dtype = dtype
    empty = empty_model(config, head=head)
    if type(empty).__module__.partition(".")[0] == "transformers":
        forget_code_(empty.config)
    return empty


def save_tensors(
    config: PreTrainedConfig,
    tensors: Mapping[str, Shaped[Tensor, "..."]],
    folder: Path,
    *,
    dtype: torch.dtype,
    generation: GenerationConfig | None,
    head: str | None = None,
    max_shard_size: str = MAX_SHARD_SIZE,
) -> None:
    """Save tensors (by the names of a state dict) as the model of `config`, which gets the `dtype`; `head` as in `empty_model`.

    Tensors of another dtype are copied, all at once.
    """
    empty = described_model(config, dtype=dtype, head=head)
    fill_empty_(empty, {name: tensor.to(dtype) for name, tensor in tensors.items()})
    with quiet():
        empty.save_pretrained(folder, max_shard_size=max_shard_size)
        if generation is not None and empty.can_generate():
            save_generation(generation, folder)


def save_generation(settings: GenerationConfig, folder: Path) -> None:
    """Write a model's settings of generation, as they are; those with which nothing can generate are left out with a warning.

    `save_pretrained` of transformers refuses settings that have no effect, such as a temperature without `do_sample`, once anything in
    them changed, as a Trainer's special tokens do. That would be at the end of all work.
    """
    try:
        settings.validate()
    except ValueError as error:
        why = " ".join(str(error).split())
        logger.warning("generation_config: %s The model is saved without these settings; correct and save them", why)
        return
    settings.to_json_file(folder / "generation_config.json", keys_to_pop=["compile_config"])
