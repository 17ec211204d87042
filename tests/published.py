"""The published method as options, for tests of scores and schedules that would see little in a single, refitted removal."""

from __future__ import annotations

from typing import Any

from loraprune.config.recipes import recipe

PUBLISHED: dict[str, Any] = recipe("paper")
