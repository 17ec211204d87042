"""Removal of whole layers: which layers are removed, and how the remaining ones are renumbered.

A layer without units adds nothing to the residual stream, so it can be left out. Knows nothing about torch or scores.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from loraprune.errors import ConfigError
from loraprune.families.base import Config, families
from loraprune.groups import LAYER, Group, Kind, layer_path

KINDS: tuple[Kind, ...] = ("attention", "ffn")
INDEX = re.compile(r"\d+$")
Value = TypeVar("Value")


def check_layers(config: Config, every: Sequence[Group], in_play: Sequence[Group], option: str) -> None:
    """Refuse an option that removes layers if a layer without units would not equal no layer; `in_play` may lose units.

    Raises:
        ConfigError: naming the reason.
    """
    kind = config.model_type
    if kind not in families.names() or families.get(kind).per_layer is None:
        raise ConfigError(f"{option}: layers of a {kind!r} model are not known to be interchangeable; leave it out")
    layers = list(dict.fromkeys(layer_path(group.name) for group in in_play))
    numbers = [int(part[0]) for layer in layers if layer and (part := INDEX.search(layer))]
    still = [group for group in every if group not in in_play or group.kind not in KINDS or not group.residual]
    if still or numbers != list(range(config.num_hidden_layers)):
        what = (
            f"units of {still[0].name!r} stay, or are normed before they are added"
            if still
            else "layers are not one row"
        )
        raise ConfigError(f"{option}: {what}, so that no layer of this {kind!r} model can go; leave it out")


def gone_layers(counts: Mapping[str, int]) -> tuple[str, ...]:
    """Return the paths of the layers none of whose groups keeps a unit; `counts` holds the units by group."""
    left = {layer_path(name) for name, count in counts.items() if count}
    return tuple(dict.fromkeys(layer for name in counts if (layer := layer_path(name)) and layer not in left))


def new_places(counts: Mapping[str, int]) -> dict[str, str]:
    """Return the path of every remaining layer -> its path once the others are removed."""
    gone = gone_layers(counts)
    layers = list(dict.fromkeys(layer for name in counts if (layer := layer_path(name))))
    return dict(zip((layer for layer in layers if layer not in gone), layers, strict=False))


def renumbered(tensors: Mapping[str, Value], counts: Mapping[str, int]) -> dict[str, Value]:
    """Return tensors, by name, as the model without its empty layers has them."""
    gone = gone_layers(counts)
    return _renamed(
        {name: value for name, value in tensors.items() if layer_path(name) not in gone}, new_places(counts)
    )


def numbered_as_before(tensors: Mapping[str, Value], counts: Mapping[str, int]) -> dict[str, Value]:
    """Return the inverse of `renumbered`: tensors by their names in the model with all layers; those gone are missing."""
    return _renamed(tensors, {new: old for old, new in new_places(counts).items()})


def _renamed(tensors: Mapping[str, Value], places: Mapping[str, str]) -> dict[str, Value]:
    return {
        LAYER.sub(lambda found: places.get(found[0], found[0]), name, count=1): value for name, value in tensors.items()
    }


def shallower(config: Config, counts: Mapping[str, int]) -> Config:
    """Return the configuration of the model without its empty layers: what it lists by layer, it lists for those left."""
    gone = {int(INDEX.search(layer)[0]) for layer in gone_layers(counts)}  # type: ignore[index]
    if not gone:
        return config
    values: dict[str, Any] = config.to_dict()
    left = [place for place in range(config.num_hidden_layers) if place not in gone]
    for key in families.get(config.model_type).per_layer or ():
        if values.get(key) is not None:
            values[key] = [values[key][place] for place in left]
    return type(config).from_dict(values | {"num_hidden_layers": len(left)})
