"""Choose which groups are drawn together, and label them.

Knows nothing about plots or scores.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from loraprune.pruning.removed import Units

NAMES: Mapping[str, str] = {
    "attention": "heads",
    "query": "query heads",
    "ffn": "FFN channels",
    "channel": "channels",
    "shared_ffn": "channels of the shared expert",
    "expert_ffn": "channels of the experts",
    "expert": "experts",
}
"""kind of a group -> what its units are called"""
CROSS_ATTENTION = ("encoder_attn", "EncDecAttention")
CROSS_HEADS = "cross-attention heads"


def rows_by_units(units: Mapping[str, Units]) -> dict[str, dict[str, str]]:
    """Return what units are called -> label of a layer -> group, such as `heads` -> `3` -> `model.layers.3.self_attn`.

    One plot shows the groups whose units are called the same. A label is a number, or `decoder 3` where both stacks have a layer 3.
    """
    by_name: dict[str, list[str]] = {}
    for group, counts in units.items():
        by_name.setdefault(name_of(group, counts.get("kind")), []).append(group)
    return {name: {label: group for group, label in layer_labels(groups).items()} for name, groups in by_name.items()}


def name_of(group: str, kind: str | None) -> str:
    """Return what the units of a group are called; where its kind is unknown, by its path."""
    if kind is None:
        return f"units of {_words(group)[-1]}"
    is_cross = kind == "attention" and group.endswith(CROSS_ATTENTION)
    return CROSS_HEADS if is_cross else NAMES[kind]


def layer_labels(groups: Sequence[str]) -> dict[str, str]:
    """Return group -> label, in ascending order: the numbers in its path, with words where numbers are not enough.

    Numbers that are the same in all paths of one form do not identify a layer, such as the sub-layers of T5's blocks.
    """
    forms: dict[tuple[str, ...], list[str]] = {}
    for group in groups:
        forms.setdefault(_words(group), []).append(group)
    numbers = [_varying_numbers(alike) for alike in forms.values()]
    often = Counter(number for found in numbers for number in found.values())
    shared = set.intersection(*(set(words) for words in forms))
    labels: dict[str, str] = {}
    for words, found in zip(forms, numbers, strict=True):
        needs_words = any(not number or often[number] > 1 for number in found.values())
        own = [word for word in words if word not in shared] if needs_words else []
        labels |= {group: " ".join([*own, number] if number else own) or group for group, number in found.items()}
    return labels


def _words(group: str) -> tuple[str, ...]:
    return tuple(part for part in group.split(".") if not part.isdigit())


def _varying_numbers(alike: Sequence[str]) -> dict[str, str]:
    """Return group -> the numbers in its path that distinguish it from the others, such as `0.3`, in ascending order."""
    found = {group: [int(part) for part in group.split(".") if part.isdigit()] for group in alike}
    columns = list(zip(*found.values(), strict=True))
    chosen = [place for place, column in enumerate(columns) if len(set(column)) > 1] or range(len(columns))
    ordered = sorted(found.items(), key=lambda pair: pair[1])
    return {group: ".".join(str(numbers[place]) for place in chosen) for group, numbers in ordered}
