"""Image classification: the class of an image, from folders of classes, a file, the hub or a benchmark; evaluated by accuracy."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from loraprune.data import Columns
from loraprune.data.images import ImageRows, check_images, collate, load_images, load_processor, open_images
from loraprune.errors import ConfigError
from loraprune.evaluation.measurement import Measured
from loraprune.evaluation.tasks.base import Inputs, Prepared, Request, Task, register_task
from loraprune.models.layerwise.modeling_loraprune import TYPE_PREFIX
from loraprune.models.modes import evaluation_mode
from loraprune.models.opening import resolve_processor
from loraprune.runtime.progress import shown

HEAD = ("classifier.", "beit.pooler.")
"""prefixes of the names of a head's parameters, which a checkpoint that was pre-trained for something else lacks"""
INTERPOLATING = ("dinov2", "dinov2_with_registers")
"""model types that stretch their positions to images of any size: the public ones state the size of another stage of their training"""
PROBE_SIZE, PROBE_SEED = 64, 0
"""side of the images that models without an `image_size` are compared on"""


def prepare(request: Request) -> Prepared:
    """Read images; where their classes are not the model's, it gets a new head for them.

    Raises:
        DataError: if evaluation images have classes that the training images, or the model, lack.
        ConfigError: if the model does not read images in colour, or its image processor makes other ones.
    """
    processor = fitting_processor(request)
    train, held_out = load_images(request.data, request.eval, seed=request.seed, columns=request.columns)
    for images in (train, held_out):
        if images is not None:
            check_images(images)
    own = classes(request.config)
    if train is None or set(train.classes) == set(own):
        # The model's own order, so that its head stays right.
        rows = None if train is None else ImageRows(train.with_classes(own), processor)
        return Prepared(rows, ImageRows(held_out.with_classes(own), processor), collate, processor)
    names = dict(enumerate(train.classes))
    values = {"id2label": names, "label2id": {name: number for number, name in names.items()}}
    return Prepared(ImageRows(train, processor), ImageRows(held_out, processor), collate, processor, values)


def fitting_processor(request: Request) -> BaseImageProcessor:
    """Load the image processor of a model that reads images in colour."""
    channels = getattr(vision(request.config), "num_channels", 3)
    if channels != 3:
        raise ConfigError(
            f"--model {request.model}: it reads images of {channels} channels, only colour images are read"
        )
    part = vision(request.config)
    size = None if part.model_type.removeprefix(TYPE_PREFIX) in INTERPOLATING else fixed_size(part)
    return load_processor(resolve_processor(request.model), image_size=size)


def read(source: str, part: str, columns: Columns) -> None:
    """Read and decode labelled images."""
    check_images(open_images(source, part, columns))


def vision(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return the part of a configuration that is about images."""
    part: PreTrainedConfig = getattr(config, "vision_config", config)
    return part


def fixed_size(config: PreTrainedConfig) -> object:
    """Return the size of the images that a model has positions for; None for a convolutional network, which takes any."""
    return getattr(config, "image_size", None) if hasattr(config, "num_attention_heads") else None


def classes(config: PreTrainedConfig) -> tuple[str, ...]:
    """Return the names of a model's classes by number; numbers where it has only placeholders for names."""
    named = sorted((int(number), str(name)) for number, name in (config.id2label or {}).items())
    return tuple(str(number) if name == f"LABEL_{number}" else name for number, name in named)


def evaluate(model: PreTrainedModel, prepared: Prepared, batch: int) -> Measured:
    """Measure how many of the held-out images get the right class, as a fraction with its binomial standard error."""
    rows, device = prepared.held_out, next(model.parameters()).device
    right: list[float] = []
    with evaluation_mode(model):
        for start in shown(range(0, len(rows), batch), "evaluating"):
            inputs = prepared.collator([rows[place] for place in range(start, min(start + batch, len(rows)))])
            labels = inputs.pop("labels")
            logits = model(**{name: values.to(device, model.dtype) for name, values in inputs.items()}).logits
            right += (logits.argmax(-1).cpu() == labels).float().tolist()
    share = sum(right) / len(rows)
    error = math.sqrt(share * (1 - share) / len(rows))
    by_row = tuple((one, 1) for one in right)
    return Measured("accuracy", share, "higher", error, {"rows": len(rows)}, rows.protocol, by_row=by_row)


def probe(config: PreTrainedConfig, rows: int, tokens: int) -> Inputs:
    """Return random images of the model's size; `tokens` says nothing about images."""
    size: Any = fixed_size(vision(config)) or PROBE_SIZE
    height, width = (size, size) if isinstance(size, int) else size
    generator = torch.Generator().manual_seed(PROBE_SEED)
    return {"pixel_values": torch.randn(rows, vision(config).num_channels, height, width, generator=generator)}


def predictions(
    logits: Float[Tensor, "batch classes"], labels: Int[Tensor, " batch"]
) -> Float[Tensor, "batch classes"]:
    """Return the logits of every image."""
    return logits


def is_head(name: str) -> bool:
    """Return whether a parameter belongs to the head."""
    return name.startswith(HEAD)


register_task(
    Task(
        "image-classification", "AutoModelForImageClassification", prepare, evaluate, probe, predictions, fitting_processor, read,
        pipeline="image-classification",
        unit="images", new=is_head,
    )
)  # fmt: skip
