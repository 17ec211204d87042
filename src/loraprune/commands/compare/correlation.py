"""Rank correlation of the scores of two runs, step by step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from loraprune.pruning.correlation import spearman


def by_step(one: Mapping[str, Sequence[float]], other: Mapping[str, Sequence[float]]) -> dict[int, dict[str, float]]:
    """Return step -> group -> rank correlation of two runs' scores, which go by step/group, over the units that both still have."""
    found: dict[int, dict[str, float]] = {}
    for name in (name for name in one if name in other):
        pairs = [pair for pair in zip(one[name], other[name], strict=True) if all(map(math.isfinite, pair))]
        value = spearman([left for left, _ in pairs], [right for _, right in pairs])
        step, _, group = name.partition("/")
        if value is not None:
            found.setdefault(int(step), {})[group] = value
    return dict(sorted(found.items()))


def agreements(
    runs: Mapping[tuple[str, int], tuple[bool, Mapping[str, Sequence[float]]]],
) -> Iterator[tuple[str, dict[int, dict[str, float]]]]:
    """Yield for every run the names of both sides and its correlation, step by step, with the reference of its seed.

    Args:
        runs: name and seed -> whether it is a reference, and its scores by step/group.
    """
    references = {seed: (name, scores) for (name, seed), (is_reference, scores) in runs.items() if is_reference}
    for (name, seed), (is_reference, scores) in runs.items():
        if not is_reference and seed in references:
            yield f"{name} / {references[seed][0]}", by_step(scores, references[seed][1])
