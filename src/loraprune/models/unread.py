"""Check the tensors of a checkpoint that the model does not read: some mean that the trained model was another one.

Knows nothing about files.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from functools import cache

from transformers import PreTrainedModel

from loraprune.errors import CheckpointError, ConfigError

ADAPTERS = re.compile(r"\blora_|\bmodules_to_save\b|\bbase_layer\b|\boriginal_module\b|\blora_magnitude_vector\b")
SCALES = re.compile(
    r"(scale_inv|weight_scale(_\d)?|input_scale|activation_scale|qweight|qzeros|g_idx|absmax|quant_map|SCB)$"
)
"""names of tensors that quantisers store beside weights, or instead of them"""
FOLLOWS = frozenset({
    "pooler", "rotary_emb", "inv_freq", "position_ids", "token_type_ids", "masked_bias", "mask_token", "relative_position_index",
    "relative_coords_table", "attn_mask", "num_batches_tracked",
})  # fmt: skip
"""parts of the names of other heads' tensors, and of tensors that follow from the configuration"""

logger = logging.getLogger(__name__)


def check_unread(source: str, model: PreTrainedModel, names: Sequence[str]) -> None:
    """Refuse a checkpoint with tensors that a `model` loaded from it lacks and needs; warn of the others, such as another head's.

    Raises:
        ConfigError: for an adapter that was not merged, and for quantised weights.
        CheckpointError: for tensors of the backbone, such as more layers than the configuration says.
    """
    if adapter := next(filter(ADAPTERS.search, names), None):
        raise ConfigError(
            f"--model {source}: it holds an adapter that is not merged ({adapter}); merge it by PEFT's merge_and_unload and save that"
        )
    if scale := next(filter(SCALES.search, names), None):
        raise ConfigError(
            f"--model {source}: its weights are quantised ({scale}) and config.json does not say how; name the 16- or 32-bit checkpoint"
        )
    inside = [name for name in names if _is_inside(model, name)]
    if inside:
        raise CheckpointError(
            f"--model {source}: the checkpoint holds {min(inside)}, which a model of this config.json does not have "
            f"({len(inside)} such tensors): config.json belongs to another model"
        )
    if names:
        _warn(source, type(model).__name__, tuple(sorted(names)))


def _is_inside(model: PreTrainedModel, name: str) -> bool:
    """Return whether a tensor belongs to the layers below the head, named with or without the backbone's prefix."""
    first, *others = name.split(".")
    if not FOLLOWS.isdisjoint(others):
        return False
    layers = model.base_model
    return (layers is not model and first == model.base_model_prefix) or first in dict(layers.named_children())


@cache
def _warn(source: str, kind: str, names: tuple[str, ...]) -> None:
    """Warn once of tensors that are left out."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    logger.warning(
        "%s: %s does not use these tensors, which are left out: %s%s", source, kind, ", ".join(names[:3]), more
    )
