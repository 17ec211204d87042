"""The options that limit the loss of quality instead of stating a size. Imports no torch, so that `--help` is fast."""

from __future__ import annotations

from dataclasses import dataclass

from loraprune.config.base import Options, at_least, failed, idle_options
from loraprune.config.values import Fraction


@dataclass(frozen=True, kw_only=True)
class DropOptions(Options):
    """How much quality may be lost."""

    max_drop: Fraction | None = None
    """find the largest cut that loses at most this fraction of quality, instead of --ratio, such as 5%, in up to --tries runs of
    different ratios. A perplexity may rise by it, an accuracy or another score may fall by it, relative to the dense model. Unless
    --steps is 0, the dense model is tuned first with the same options"""

    @property
    def drop_given(self) -> str:
        """Return the limit as typed."""
        return f"--max-drop {100 * (self.max_drop or 0):g}%"

    def problems(self) -> list[str]:
        """Return one sentence for every option that is wrong."""
        limit = self.max_drop
        good = limit is None or 0 <= limit <= 1
        return [
            *super().problems(),
            *failed((good, f"--max-drop {limit}: a fraction from 0 to 1 is needed, such as 5%")),
        ]


@dataclass(frozen=True, kw_only=True)
class SearchOptions(DropOptions):
    """How a cut within a limit is searched."""

    tries: int = 5
    """with --max-drop, maximum number of runs; each takes as long as a run with --ratio"""

    def problems(self) -> list[str]:
        """Return one sentence for every option that is wrong."""
        return [*super().problems(), *at_least(("tries", self.tries, 1))]

    def idle(self) -> list[str]:
        """Return one sentence for every option that is given and changes nothing beside the others."""
        alone = idle_options(self, "it counts the runs of a search; give --max-drop", "tries")
        return [*super().idle(), *(alone if self.max_drop is None else [])]
