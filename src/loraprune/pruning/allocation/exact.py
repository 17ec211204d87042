"""Widths by hand: so many query heads, so many channels, or a ratio for each.

Knows nothing about scores.
"""

from __future__ import annotations

from loraprune.errors import PlanError
from loraprune.pruning.allocation.space import Space


def exact_counts(space: Space, *, heads: int | None, ffn: int | None) -> dict[str, int]:
    """Return the counts for `heads` query heads and `ffn` channels in every layer; None keeps all.

    Raises:
        PlanError: if the model cannot have them.
    """
    for option, kind, wanted in (("--heads", "attention", heads), ("--ffn", "ffn", ffn)):
        if wanted is not None and kind not in space.by_kind():
            raise PlanError(f"{option} {wanted}: units of kind {kind} are not pruned here; --kinds all prunes them too")
    counts = {group.name: group.units for group in space.groups}
    for group in space.groups:
        if group.kind not in ("attention", "ffn"):
            continue
        wanted, each = (heads, group.sizes.get("num_attention_heads", 1)) if group.kind == "attention" else (ffn, 1)
        if wanted is None:
            continue
        option = "--heads" if group.kind == "attention" else "--ffn"
        if wanted % each or not 0 < wanted // each <= group.units:
            raise PlanError(
                f"{option} {wanted}: {group.name} can keep multiples of {each} up to {group.units * each} "
                "(query heads leave together with the key-value head they share)"
            )
        counts[group.name] = wanted // each
    if not space.storable(counts):
        raise PlanError(f"--heads {heads} --ffn {ffn}: no stock configuration of this model type can hold these widths")
    return counts


def widths_left(space: Space, *, heads: float | None, ffn: float | None) -> tuple[int | None, int | None]:
    """Return the query heads and the FFN channels that are left when fractions of them go; None where all stay.

    Heads go in whole units, channels to the nearest multiple of the rounding step; at least one of each stays.
    """
    left: list[int | None] = []
    for kind, ratio in (("attention", heads), ("ffn", ffn)):
        group = next((group for group in space.groups if group.kind == kind), None)
        if ratio is None or group is None:
            left.append(None)
            continue
        wanted = group.units * (1 - ratio)
        units = min(space.widths(group), key=lambda width: (abs(width - wanted), -width))
        left.append(units * int(group.sizes.get("num_attention_heads", 1) if kind == "attention" else 1))
    return left[0], left[1]
