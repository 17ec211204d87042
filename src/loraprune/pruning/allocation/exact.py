"""Widths by hand: so many query heads, so many channels, or a ratio for each.

Knows nothing about scores.
"""

from __future__ import annotations

from fractions import Fraction

from loraprune.errors import PlanError
from loraprune.families.query_heads import query_heads
from loraprune.groups import HEADS, Group
from loraprune.pruning.allocation.space import Space

TOGETHER = "query heads leave together with the key-value head they share"
ALONE = "; --kinds query,ffn removes single ones"
SAME_NUMBER = "every key-value head keeps the same number of query heads"


def exact_counts(space: Space, *, heads: int | None, ffn: int | None) -> dict[str, int]:
    """Return the counts for `heads` query heads and `ffn` channels in every layer; None keeps all.

    Raises:
        PlanError: if the model cannot have them.
    """
    for option, kinds, wanted in (("--heads", HEADS, heads), ("--ffn", ("ffn",), ffn)):
        if wanted is not None and not set(kinds) & set(space.by_kind()):
            raise PlanError(
                f"{option} {wanted}: units of kind {kinds[0]} are not pruned here; --kinds all prunes them too"
            )
    counts = {group.name: group.units for group in space.groups}
    for group in space.groups:
        if group.kind not in (*HEADS, "ffn"):
            continue
        option, wanted = ("--heads", heads) if group.kind in HEADS else ("--ffn", ffn)
        if wanted is None:
            continue
        each = _heads_each(group)
        step = int(each * group.parts)
        if wanted % step or not 0 < wanted <= group.units * each:
            why = SAME_NUMBER if group.kind == "query" else TOGETHER + (ALONE if query_heads(group) > 1 else "")
            raise PlanError(
                f"{option} {wanted}: {group.name} can keep multiples of {step} up to {group.units * each} ({why})"
            )
        counts[group.name] = int(wanted // each)
    if not space.storable(counts):
        raise PlanError(f"--heads {heads} --ffn {ffn}: no stock configuration of this model type can hold these widths")
    return counts


def widths_left(space: Space, *, heads: float | None, ffn: float | None) -> tuple[int | None, int | None]:
    """Return the query heads and the FFN channels that are left when fractions of them go; None where all stay.

    Heads go in whole units, channels to the nearest multiple of the rounding step; at least one of each stays.
    """
    left: list[int | None] = []
    for kinds, ratio in ((HEADS, heads), (("ffn",), ffn)):
        group = next((group for group in space.groups if group.kind in kinds), None)
        if ratio is None or group is None:
            left.append(None)
            continue
        wanted = group.units * (1 - ratio)
        units = min(space.widths(group), key=lambda width: (abs(width - wanted), -width))
        left.append(units * int(_heads_each(group)))
    return left[0], left[1]


def _heads_each(group: Group) -> int | Fraction:
    """Return what one unit adds to --heads or --ffn: the query heads of a key-value head, or one."""
    return group.sizes.get("num_attention_heads", 1)
