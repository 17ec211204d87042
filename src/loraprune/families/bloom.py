"""BLOOM: FFN channels only.

ALiBi gives every head a slope by its number among all heads, computed for the whole model from the head count, so a model
without some heads is another model. The FFN's width is four times the hidden size in the code itself: no stock checkpoint
holds a smaller one.
"""

from __future__ import annotations

from collections.abc import Iterator

from loraprune.families.base import Config, mlp, register_family
from loraprune.groups import Group


@register_family("bloom")
def bloom(config: Config) -> Iterator[Group]:
    """Yield the FFN group of every layer."""
    for index in range(config.num_hidden_layers):
        path = f"transformer.h.{index}.mlp"
        yield mlp(path, 4 * config.hidden_size, up="dense_h_to_4h", down="dense_4h_to_h", key=None)
