"""Labelled images and an image processor -> rows for the Trainer.

Processors are those of transformers that need Pillow alone, also where torchvision is installed: the same everywhere.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Shaped
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset
from transformers.image_processing_utils import BaseImageProcessor

from loraprune.data.images.sources import LabelledImages, Stored
from loraprune.errors import CheckpointError, ConfigError, DataError
from loraprune.models.auto_classes import forget_code_
from loraprune.models.compat import pillow_processor
from loraprune.models.opening import clear_errors

FILE = "preprocessor_config.json"


@dataclass(frozen=True)
class ImageRows(Dataset[dict[str, Any]]):
    """Images as a model reads them, decoded on access."""

    images: LabelledImages
    processor: BaseImageProcessor

    @property
    def protocol(self) -> Mapping[str, object]:
        """Return where the images come from, and how many of how many classes there are."""
        return {
            "source": self.images.source, "split": self.images.split, "rows": len(self), "classes": len(self.images.classes)
        }  # fmt: skip

    def __len__(self) -> int:
        return len(self.images.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = decode(self.images.images[index], self.images.places[index])
        pixels: Tensor = self.processor(images=[image], return_tensors="pt")["pixel_values"][0]
        return {"pixel_values": pixels, "labels": self.images.labels[index]}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))

    def take(self, places: Sequence[int]) -> ImageRows:
        """Return some of the rows."""
        return ImageRows(self.images.take(places, split=self.images.split), self.processor)


def collate(rows: Sequence[Mapping[str, Any]]) -> dict[str, Shaped[Tensor, "rows ..."]]:
    """Return a batch of `pixel_values` (batch, channels, height, width) and `labels` (batch)."""
    return {
        "pixel_values": torch.stack([row["pixel_values"] for row in rows]),
        "labels": torch.tensor([row["labels"] for row in rows]),
    }


def decode(stored: Stored, place: str) -> Image.Image:
    """Return an image in RGB, upright: grey, palette, CMYK and transparent ones are converted, 16-bit grey is scaled.

    Raises:
        DataError: if it is broken.
    """
    try:
        with Image.open(stored if isinstance(stored, Path) else io.BytesIO(stored)) as image:
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):
                upright = upright.point(lambda value: value / 256).convert("L")
            return upright.convert("RGB")
    except UnidentifiedImageError:
        raise DataError(f"{place}: not an image that Pillow can read: convert it or move it out") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{place}: the image is broken ({str(error).splitlines()[0]}): write it again or move it out"
        ) from None


def check_images(images: LabelledImages) -> None:
    """Decode every image once, so that a broken one is reported before a run begins.

    Raises:
        DataError: if one is broken.
    """
    with ThreadPoolExecutor() as pool:
        for _ in pool.map(decode, images.images, images.places):
            pass


def load_processor(model: str, *, image_size: object) -> BaseImageProcessor:
    """Load the image processor of a model; `image_size` is the one the model was built for, None for any.

    Raises:
        CheckpointError: if the model has none.
        ConfigError: if it makes images of another size.
    """
    try:
        values, _ = BaseImageProcessor.get_image_processor_dict(model)
    except (OSError, ValueError, RecursionError):
        raise CheckpointError(
            f"--model {model}: {FILE} is missing or malformed: save the image processor beside the model"
        ) from None
    named = str(values.get("image_processor_type") or values.get("feature_extractor_type") or "")
    plain = named.replace("FeatureExtractor", "ImageProcessor").removesuffix("Fast").removesuffix("Pil")
    kind = pillow_processor(plain)
    if not plain or kind is None:
        raise CheckpointError(
            f"--model {model}: {FILE} names the type {named!r}, of which transformers has none for Pillow"
        )
    with clear_errors(model, "its image processor"):
        processor: BaseImageProcessor = kind.from_pretrained(model)
        forget_code_(processor)
        pixels = processor(images=[Image.new("RGB", (40, 30))], return_tensors="pt")["pixel_values"]
    if not torch.isfinite(pixels).all():
        raise CheckpointError(
            f"--model {model}: {FILE} turns an image into NaN or infinity: correct image_mean and image_std"
        )
    made = tuple(pixels.shape[2:])
    wanted = (image_size, image_size) if isinstance(image_size, int) else image_size
    if wanted is not None and made != tuple(wanted):  # type: ignore[arg-type]
        raise ConfigError(
            f"--model {model}: {FILE} makes images of {made[0]} x {made[1]}, image_size in config.json is {image_size}"
        )
    return processor
