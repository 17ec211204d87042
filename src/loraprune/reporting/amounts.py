"""Format numbers, the same way in tables, pages and plots."""

from __future__ import annotations

UNTRAINED = "untrained head"
"""marks a dense figure where the checkpoint had no head for the task"""

NEW_HEAD = "the checkpoint had no head for this task; `loraprune finetune` on the same data gives a dense model to compare with"


def size(count: int | float | None) -> str:
    """Write a number of bytes."""
    if count is None:
        return "-"
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= scale:
            return f"{count / scale:.2f} {unit}"
    return f"{count:.0f} B"


def change(dense: int | float, pruned: int | float) -> str:
    """Write a relative change in per cent."""
    return f"{100 * (pruned / dense - 1):+.1f} %" if dense else "-"


def short(count: int | float) -> str:
    """Write a count with three digits and a prefix."""
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count:.3g}"


def call_time(seconds: float) -> str:
    """Write the time of a call with three digits, in milliseconds below a second."""
    return f"{1e3 * seconds:.3g} ms" if seconds < 0.9995 else f"{seconds:.3g} s"


def duration(seconds: float) -> str:
    """Write a duration in its two largest units."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
