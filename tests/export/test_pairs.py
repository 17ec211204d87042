"""An encoder-decoder as two graphs: what the decoder reads of a source, and one step of the target beside a cache."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from loraprune.export.graphs import Encoding, TargetStep
from loraprune.export.onnx_session import PairSession
from loraprune.models.loading import from_pretrained
from tests.encoder_decoders import pair_inputs
from tests.export.cases import exported
from tests.tiny import tiny_model

FAMILIES = ["t5", "umt5", "bart", "mbart", "pegasus", "marian", "m2m_100"]


def step_by_step(model: Any, *, forget: bool) -> tuple[Tensor, Tensor]:
    """Return the logits of a target read in pieces of 1, 3 and 2 tokens, and those of reading it at once; padding in a source."""
    ids, targets = pair_inputs()["input_ids"], pair_inputs()["decoder_input_ids"][:, :6]
    mask = torch.ones_like(ids)
    mask[0, -5:] = 0
    encoding, step, found = Encoding(model), TargetStep(model), []
    with torch.no_grad():
        source = list(encoding(ids, mask))
        past = [each[:, :, :0] for each in source]
        for piece in targets.split([1, 3, 2], dim=1):
            logits, *present = step(piece, mask, past, source)
            past = past if forget else present
            found.append(logits)
        expected = model(input_ids=ids, attention_mask=mask, decoder_input_ids=targets, use_cache=False).logits
    return torch.cat(found, 1), expected


@pytest.mark.parametrize("variant", FAMILIES)
def test_a_target_read_in_pieces_is_the_same_as_at_once(variant: str) -> None:
    found, expected = step_by_step(tiny_model(variant), forget=False)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_step_that_forgets_its_past_is_another() -> None:
    found, expected = step_by_step(tiny_model("t5"), forget=True)
    assert (found - expected).abs().max() > 1e-2


@pytest.mark.slow
@pytest.mark.skipif(find_spec("onnxruntime") is None, reason="the extra export is not installed")
@pytest.mark.parametrize("variant", ["t5", "bart"])
def test_onnxruntime_writes_the_targets_that_transformers_does(variant: str, tmp_path: Path) -> None:
    tiny_model(variant).save_pretrained(tmp_path / "source")
    values = exported(tmp_path / "source", tmp_path / "out", "onnx")
    assert values["verification"]["source_vs_exported"] < 1e-5
    model: Any = from_pretrained(tmp_path / "source")
    ids = pair_inputs()["input_ids"]
    mask, start = torch.ones_like(ids), model.config.decoder_start_token_id
    settings = {"do_sample": False, "num_beams": 1, "min_new_tokens": 9, "max_new_tokens": 9}
    expected = model.generate(ids, attention_mask=mask, eos_token_id=None, **settings)
    found = PairSession(tmp_path / "out").generate(ids.numpy(), mask.numpy(), start=start, new_tokens=9)
    assert found.tolist() == expected[:, 1:].tolist()
