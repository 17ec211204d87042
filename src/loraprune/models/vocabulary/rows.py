"""Cut the rows of the embedding and of the output head that belong to tokens which are not kept."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import PreTrainedModel

from loraprune.models.vocabulary.choice import Choice
from loraprune.models.vocabulary.ids import parts_of, renumber_


@torch.no_grad()
def cut_model_(model: PreTrainedModel, choice: Choice) -> None:
    """Cut a model in place: its embedding, its output head (tied or not) and the head's bias keep the rows of `choice`.

    The kept rows move to the beginning, and transformers cuts the rest, which it knows for every architecture. Tokens that the
    configurations name get their new ids.
    """
    rows = torch.tensor(choice.kept[: choice.rows])
    for tensor in _vocabulary_tensors(model):
        place = rows.to(tensor.device)
        tensor[..., : choice.rows].copy_(tensor[..., place])
    model.resize_token_embeddings(choice.rows, mean_resizing=False)
    settings = getattr(model, "generation_config", None)
    for part in (*parts_of(model.config), *([settings] if settings is not None else [])):
        renumber_(part, choice.new)


def _vocabulary_tensors(model: PreTrainedModel) -> Iterator[Tensor]:
    """Yield each tensor with a place for every token once, turned so that tokens are its last dimension."""
    read, written = model.get_input_embeddings(), model.get_output_embeddings()
    found: dict[int, Tensor] = {}
    for layer in (read, written):
        for name in ("weight", "bias"):
            tensor = getattr(layer, name, None)
            if isinstance(tensor, Tensor):
                found.setdefault(tensor.data_ptr(), tensor.t())
    logits_bias = getattr(model, "final_logits_bias", None)  # BART's, which is no part of its head
    if isinstance(logits_bias, Tensor):
        found[logits_bias.data_ptr()] = logits_bias
    yield from found.values()
