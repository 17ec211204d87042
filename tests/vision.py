"""Tiny image classifiers for `tests.tiny.EVERY`: every vision family and every variant that its code treats differently."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.variant import Variant

SIZE, CHANNELS, LABELS = 16, 3, 5

VIT: dict[str, Any] = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 8, "intermediate_size": 96, "image_size": SIZE,
    "patch_size": 4, "initializer_range": 0.2,
}  # fmt: skip
TEXT = {
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 50,
}
SWIN: dict[str, Any] = {
    "image_size": SIZE, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4,
    "initializer_range": 0.2, "drop_path_rate": 0.0,
}  # fmt: skip
RESNET: dict[str, Any] = {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [2, 2]}
CONVNEXT: dict[str, Any] = {
    "hidden_sizes": [8, 16],
    "depths": [2, 2],
    "num_stages": 2,
    "patch_size": 2,
    "initializer_range": 0.3,
}

VALUES: dict[str, dict[str, Any]] = {
    "vit": VIT,
    "vit-no_bias": VIT | {"qkv_bias": False},
    "deit": VIT | {"architectures": ["DeiTForImageClassification"]},
    "dinov2": VIT | {"layerscale_value": 0.7, "mlp_ratio": 2},
    "dinov2-gated": VIT | {"layerscale_value": 0.7, "mlp_ratio": 2, "use_swiglu_ffn": True},
    "beit": VIT | {"layer_scale_init_value": 0.7, "drop_path_rate": 0.0, "use_relative_position_bias": True},
    "beit-shared": VIT
    | {"layer_scale_init_value": 0.0, "drop_path_rate": 0.0, "use_shared_relative_position_bias": True},
    "beit-absolute": VIT
    | {"drop_path_rate": 0.0, "layer_scale_init_value": 0.7, "use_absolute_position_embeddings": True},
    "swin": SWIN,
    "clip": {"vision_config": VIT, "text_config": TEXT},
    "resnet": RESNET,
    "resnet-joined": RESNET | {"hidden_sizes": [8, 16], "layer_type": "basic"},
    "resnet-basic": RESNET | {"layer_type": "basic", "downsample_in_first_stage": True},
    "convnext": CONVNEXT | {"layer_scale_init_value": 0.7},
    "convnext-no_scale": CONVNEXT | {"layer_scale_init_value": 0.0},
}
"""variant -> what it sets; the model type stands before the first hyphen"""


def images(rows: int = 4, *, seed: int = 0) -> Tensor:
    """Return random images."""
    return torch.randn(rows, CHANNELS, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def image_inputs() -> Mapping[str, Any]:
    """Return images for a classifier."""
    return {"pixel_values": images()}


def image_batch() -> Mapping[str, Tensor]:
    """Return images with their classes."""
    return {"pixel_values": images(4, seed=3), "labels": torch.arange(4)}


def classifier(variant: str) -> Variant:
    """Return a variant that classifies images."""
    kind = variant.partition("-")[0]
    values = {"num_labels": LABELS} | VALUES[variant]
    depth = (
        "vision_config.num_hidden_layers" if kind == "clip" else "depths" if "depths" in values else "num_hidden_layers"
    )
    return Variant(kind, values, "AutoModelForImageClassification", image_inputs, image_batch, depth=depth)


VISION = {variant: classifier(variant) for variant in VALUES}
