"""Find out whether a model's output layer shares the weight of its input embeddings, whatever its configuration says.

Knows nothing about adapters or files.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel


def is_untied(model: PreTrainedModel) -> bool:
    """Return whether a model has input embeddings and an output layer with different weights.

    transformers loads both where a checkpoint holds both, also where the configuration says that they are one.
    """
    try:
        layers = model.get_input_embeddings(), model.get_output_embeddings()
    except NotImplementedError:  # models of images have none
        return False
    read, written = (getattr(layer, "weight", None) for layer in layers)
    if not (isinstance(read, Tensor) and isinstance(written, Tensor)) or read.data_ptr() == written.data_ptr():
        return False
    return read.shape != written.shape or not torch.equal(read, written)


def untie_config_(config: PreTrainedConfig) -> None:
    """Set in a configuration that the output layer has a separate weight."""
    for part in (config, config.get_text_config()):
        if getattr(part, "tie_word_embeddings", False):
            part.tie_word_embeddings = False


def config_as_tied(config: PreTrainedConfig, model: PreTrainedModel) -> PreTrainedConfig:
    """Return the configuration to save a model with: another one if it shares no weights where `config` says that it does."""
    if not is_untied(model):
        return config
    own = copy.deepcopy(config)
    untie_config_(own)
    return own
