"""Folders of small pictures, each class a colour."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from loraprune.models.compat import pillow_processor
from tests.tiny import tiny_model
from tests.vision import SIZE

CLASSES = ("blue", "green", "red")


def write_images(folder: Path, *, each: int = 10, classes: tuple[str, ...] = CLASSES, seed: int = 0) -> Path:
    """Write noisy pictures as FOLDER/CLASS/NUMBER.png."""
    draw = np.random.default_rng(seed)
    for channel, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for number in range(each):
            pixels = draw.integers(0, 80, (20, 24, 3), dtype=np.uint8)
            pixels[..., channel % 3] += 150
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def save_classifier(folder: Path, variant: str = "vit") -> Path:
    """Write a tiny classifier of five classes with an image processor."""
    tiny_model(variant).save_pretrained(folder)
    pillow_processor("ViTImageProcessor")(size={"height": SIZE, "width": SIZE}).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
