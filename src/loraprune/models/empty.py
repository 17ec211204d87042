"""Write checkpoints: a model without weights gets tensors and is saved.

Knows nothing about pruning.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Shaped
from torch import Tensor
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

from loraprune.errors import CheckpointError, LoraPruneError
from loraprune.models.auto_classes import auto_class, find_head, forget_code_
from loraprune.models.opening import quiet

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
    config.dtype = dtype
    empty = empty_model(config, head=head)
    if type(empty).__module__.partition(".")[0] == "transformers":
        forget_code_(empty.config)
    fill_empty_(empty, {name: tensor.to(dtype) for name, tensor in tensors.items()})
    if generation is not None:
        empty.generation_config = generation
    with quiet():
        empty.save_pretrained(folder, max_shard_size=max_shard_size)
