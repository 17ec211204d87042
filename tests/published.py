"""The published method as options, for tests of scores and schedules that would see little in a single, refitted removal."""

from __future__ import annotations

from typing import Any

from loraprune.config.pruning import UNIT_OPTIONS
from loraprune.config.recipes import recipe

PUBLISHED: dict[str, Any] = recipe("paper")


def by_the_paper(**changes: Any) -> dict[str, Any]:
    """Return the options of the published method with others; those about units are left out where single weights go."""
    of_units = UNIT_OPTIONS if changes.get("sparsity") else ()
    return {name: value for name, value in PUBLISHED.items() if name not in of_units} | changes
