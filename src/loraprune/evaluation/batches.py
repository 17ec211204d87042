"""Which rows go through a model together: those of similar lengths, so that little is computed on padding."""

from __future__ import annotations

from collections.abc import Sequence


def by_length(lengths: Sequence[int], batch: int) -> list[list[int]]:
    """Return the places of rows in batches, the longest rows first: what does not fit into memory shows at once.

    Rows of equal lengths stay in their order.
    """
    order = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    return [order[start : start + batch] for start in range(0, len(order), batch)]
