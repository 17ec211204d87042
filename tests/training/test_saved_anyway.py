"""What a training of hours made is saved, also where the user left something that stands in the way."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from loraprune import LoRAPruneCallback, from_pretrained, save_pruned
from loraprune.errors import CheckpointError
from tests.fitting import adapted, arguments, config, fit


def trained(folder: Path, **generation: Any) -> tuple[Any, LoRAPruneCallback]:
    settings = config(interval=1)
    model, callback = adapted(settings), LoRAPruneCallback(settings)
    for name, value in generation.items():
        setattr(model.get_base_model().generation_config, name, value)
    return fit(model, arguments(folder / "run", steps=2), [callback]), callback


def test_settings_of_generation_without_effect_are_saved_as_they_are(tmp_path: Path) -> None:
    trainer, callback = trained(tmp_path, temperature=0.5, do_sample=False)
    with pytest.raises(ValueError, match="temperature"):  # what transformers says to them
        trainer.model.get_base_model().generation_config.save_pretrained(tmp_path / "settings")
    save_pruned(callback, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["temperature"] == 0.5
    assert GenerationConfig.from_pretrained(tmp_path / "out").temperature == 0.5


def test_settings_with_which_nothing_generates_are_left_out_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, callback = trained(tmp_path, num_return_sequences=3, do_sample=False)
    with caplog.at_level(logging.WARNING, logger="loraprune"):
        save_pruned(callback, tmp_path / "out")
    assert "num_return_sequences" in caplog.text
    assert "saved without these settings" in caplog.text
    assert from_pretrained(tmp_path / "out").generation_config.num_return_sequences is None


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_folder_that_may_not_be_replaced_is_left_alone_and_the_model_lies_beside_it(
    overwrite: bool, tmp_path: Path
) -> None:
    trainer, callback = trained(tmp_path)
    trainer.save_model(str(tmp_path / "out"))
    before = sorted(path.name for path in (tmp_path / "out").iterdir())
    (tmp_path / "out-2").mkdir()  # taken
    ids = torch.arange(8)[None]
    expected = trainer.model.eval()(input_ids=ids).logits
    with pytest.raises(CheckpointError, match=r"the model was saved as .*out-3") as caught:
        save_pruned(callback, tmp_path / "out", overwrite=overwrite)
    assert "--" not in str(caught.value)  # arguments, not options
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == before
    assert torch.allclose(from_pretrained(tmp_path / "out-3")(input_ids=ids).logits, expected, atol=1e-4)
    save_pruned(callback, tmp_path / "out-3", overwrite=True)  # the control: a result of loraprune is replaced
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out-2", "out-3", "run"]
