"""A tiny random image classifier for every vision family and every variant that its code treats differently."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModelForImageClassification, PreTrainedConfig, PreTrainedModel

SIZE, CHANNELS, LABELS = 16, 3, 5

VIT: dict[str, Any] = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 8, "intermediate_size": 96, "image_size": SIZE,
    "patch_size": 4, "initializer_range": 0.2,
}  # fmt: skip
CLIP = VIT | {"initializer_factor": 5.0}
TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 50}
SWIN: dict[str, Any] = {
    "image_size": SIZE, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4,
    "initializer_range": 0.2, "drop_path_rate": 0.0,
}  # fmt: skip
RESNET: dict[str, Any] = {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [2, 2]}
CONVNEXT: dict[str, Any] = {"hidden_sizes": [8, 16], "depths": [2, 2], "num_stages": 2, "patch_size": 2}

VISION: dict[str, dict[str, Any]] = {
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
    "clip": {"vision_config": CLIP, "text_config": TEXT},
    "resnet": RESNET,
    "resnet-joined": RESNET | {"hidden_sizes": [8, 16], "layer_type": "basic"},
    "resnet-basic": RESNET | {"layer_type": "basic", "downsample_in_first_stage": True},
    "convnext": CONVNEXT | {"layer_scale_init_value": 0.7},
    "convnext-no_scale": CONVNEXT | {"layer_scale_init_value": 0.0},
}
"""variant -> what it sets; the model type stands before the first hyphen"""


def vision_config(variant: str) -> PreTrainedConfig:
    """Return the configuration of a variant."""
    config: PreTrainedConfig = CONFIG_MAPPING[variant.partition("-")[0]](**VISION[variant], num_labels=LABELS)
    return config


def vision_model(variant: str, *, seed: int = 0) -> PreTrainedModel:
    """Return a random model of a variant in evaluation mode, with batch norms that have seen something."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForImageClassification.from_config(vision_config(variant))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim == 1 or "table" in name:
                    parameter += 0.3 * torch.randn_like(parameter)
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.running_mean += 0.3 * torch.randn_like(module.running_mean)
                    module.running_var += torch.rand_like(module.running_var)
    return model.eval()


def images(rows: int = 3, *, seed: int = 0) -> Tensor:
    """Return random images."""
    return torch.randn(rows, CHANNELS, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def image_logits(model: nn.Module, pixels: Tensor | None = None) -> Tensor:
    """Return a model's logits."""
    result: Tensor = model.eval()(pixel_values=images() if pixels is None else pixels).logits
    return result
