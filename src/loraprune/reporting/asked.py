"""The target of a run that is not a ratio, in words: what was asked for, and what it came to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from loraprune.reporting.amounts import call_time


def asked_and_reached(
    target: Mapping[str, Any] | None, reached: Mapping[str, Any] | None, parameters: tuple[int, int]
) -> Iterator[tuple[str, str]]:
    """Yield name and text of a target.

    Args:
        target: Option -> value, None for options that were not given.
        reached: Its figures, as the report has them.
        parameters: Of the whole dense and of the whole pruned model.
    """
    asked = {name: value for name, value in (target or {}).items() if value is not None}
    found, (dense, pruned) = reached or {}, parameters
    if "size" in asked:
        yield "size reached", f"{100 * pruned / dense:.2f} % of the parameters (asked {100 * asked['size']:g} %)"
    if "parameters" in asked:
        yield "size reached", f"{pruned:,} parameters (asked {asked['parameters']})"
    if "file_size" in asked:
        yield "file of the weights", f"{found['file_bytes']:,} bytes in {found['dtype']} (asked {asked['file_size']})"
    if "memory" in asked:
        parts = f"weights {found['weight_bytes']:,}, cache of {found['context']:,} tokens {found['cache_bytes']:,}"
        yield (
            "memory of inference",
            f"{found['memory_bytes']:,} bytes in {found['dtype']}: {parts} (asked {asked['memory']})",
        )
    if "speedup" in asked:
        yield "speed-up", f"{_speed(found)} (asked {asked['speedup']:g})"


def _speed(found: Mapping[str, Any]) -> str:
    what = f"{found['speedup']:.2f} times, {found['timed']} of {found['tokens']} tokens"
    if found["device"] is None:
        return f"{what}, expected from the multiplications; `prune` measures it"
    return f"{what} on {found['device']}: dense {call_time(found['dense_seconds'])}, pruned {call_time(found['pruned_seconds'])}"
