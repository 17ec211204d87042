"""Rank correlation of scores, without a dependency on SciPy."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence


def spearman(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Return Spearman's rank correlation, with mean ranks for ties; None if one side is constant."""
    try:
        return statistics.correlation(ranks(one), ranks(other))
    except statistics.StatisticsError:
        return None


def ranks(values: Sequence[float]) -> list[float]:
    """Return the rank of every value, from 1; equal values get their mean rank."""
    order = sorted(range(len(values)), key=values.__getitem__)
    found = [0.0] * len(values)
    start = 0
    while start < len(order):
        stop = start
        while stop < len(order) and values[order[stop]] == values[order[start]]:
            stop += 1
        for place in order[start:stop]:
            found[place] = (start + 1 + stop) / 2
        start = stop
    return found


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
