"""Image processors that make images of another size than config.json states: read where the model can, refused where it cannot."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from loraprune.errors import ConfigError
from loraprune.evaluation.tasks import Request, find_task
from loraprune.models.compat import pillow_processor
from loraprune.models.loading import from_pretrained
from tests.data.images.conftest import save_classifier, write_images
from tests.vision import SIZE


def request(root: Path, variant: str, side: int) -> Request:
    model = save_classifier(root / "model", variant)
    pillow_processor("ViTImageProcessor")(size={"height": side, "width": side}).save_pretrained(model)
    return Request(str(model), AutoConfig.from_pretrained(model), str(write_images(root / "data", each=4)), None, 64)


def test_dinov2_reads_images_of_the_size_that_its_processor_makes(tmp_path: Path) -> None:
    asked = request(tmp_path, "dinov2", 2 * SIZE)
    prepared = find_task(asked.config).prepare(asked)
    batch = prepared.collator([prepared.held_out[0]])
    assert batch["pixel_values"].shape[-1] == 2 * SIZE
    with torch.no_grad():
        assert torch.isfinite(from_pretrained(asked.model)(pixel_values=batch["pixel_values"]).logits).all()


def test_a_model_of_fixed_positions_refuses_another_size(tmp_path: Path) -> None:
    asked = request(tmp_path, "vit", 2 * SIZE)
    with pytest.raises(ConfigError, match=f"makes images of {2 * SIZE} x {2 * SIZE}"):
        find_task(asked.config).prepare(asked)
