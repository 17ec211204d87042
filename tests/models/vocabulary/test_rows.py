"""The logits of kept tokens are the whole model's, in every family of text models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from loraprune.evaluation.precision import logits_of
from loraprune.models.vocabulary import Choice, cut_model_
from loraprune.models.vocabulary.ids import named_ids
from tests.tiny import EVERY, tiny_config, tiny_model

TEXT = [variant for variant, found in EVERY.items() if "input_ids" in found.inputs()]


def choice_for(model: PreTrainedModel) -> Choice:
    """Return every third token, and those that the configuration names."""
    dense = model.config.get_text_config().vocab_size
    return Choice(tuple(sorted({*range(0, dense, 3), *(one for one in named_ids(model.config) if one < dense)})), dense)


@pytest.mark.parametrize("variant", TEXT)
def test_logits_of_kept_tokens_are_equal(variant: str, tmp_path: Path) -> None:
    model = tiny_model(variant)
    choice = choice_for(model)
    kept = torch.tensor(choice.kept)
    inputs = dict(EVERY[variant].inputs())
    for name in ("input_ids", "decoder_input_ids"):
        if name in inputs:
            inputs[name] = inputs[name] % len(kept)
    whole = {name: kept[value] if name.endswith("input_ids") else value for name, value in inputs.items()}
    before, rows = logits_of(model, whole), model.get_input_embeddings().num_embeddings
    has_head = before.shape[-1] == rows
    cut_model_(model, choice)
    after = logits_of(model, inputs)
    expected = before[..., kept] if has_head else before
    assert after.shape == expected.shape
    torch.testing.assert_close(after, expected, rtol=1e-5, atol=1e-5)
    model.save_pretrained(tmp_path)
    reloaded = type(model).from_pretrained(tmp_path).eval()
    torch.testing.assert_close(logits_of(reloaded, inputs), after, rtol=1e-5, atol=1e-5)
    assert reloaded.config.get_text_config().vocab_size == len(kept)
    wrong = {name: value.flip(-1) if name.endswith("input_ids") else value for name, value in inputs.items()}
    assert not torch.allclose(logits_of(model, wrong), expected, rtol=1e-5, atol=1e-5)  # control: other tokens


def test_tokens_that_a_configuration_names_are_renumbered() -> None:
    config = tiny_config("llama")
    config.eos_token_id, config.pad_token_id = [5, 9], 7
    found = Choice((0, 5, 7, 9), config.vocab_size).config(config)
    assert (found.eos_token_id, found.pad_token_id, found.vocab_size) == ([1, 3], 2, 4)
    assert config.eos_token_id == [5, 9]
