"""Sparsity patterns: unstructured, or N:M along the inputs of a projection. Imports no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass

from loraprune.errors import ConfigError, nearest

UNSTRUCTURED = "unstructured"
WORDS = (UNSTRUCTURED, "2:4", "4:8")
"""suggestions for an unknown word; any other N:M works too"""


@dataclass(frozen=True, slots=True)
class Pattern:
    """At most `kept` of every `block` neighbouring inputs of an output are non-zero; a `block` of 1 sets no limit."""

    kept: int
    block: int

    @property
    def name(self) -> str:
        """Return the pattern as it is written on the command line."""
        return f"{self.kept}:{self.block}" if self.is_blocked else UNSTRUCTURED

    @property
    def is_blocked(self) -> bool:
        """Return whether the pattern limits blocks, which also fixes the ratio."""
        return self.block > 1

    def ratio(self, asked: float) -> float:
        """Return the fraction of zeros: fixed by the pattern, or as requested."""
        return (self.block - self.kept) / self.block if self.is_blocked else asked

    def zeros(self, weights: int, asked: float) -> int:
        """Return how many of the `weights` of a matrix become zero."""
        return round(weights * self.ratio(asked))


def parse_pattern(text: str) -> Pattern:
    """Read `unstructured` or N:M, such as 2:4.

    Raises:
        ConfigError: if it is neither, or N is not below M.
    """
    if text == UNSTRUCTURED:
        return Pattern(1, 1)
    numbers = re.fullmatch(r"(\d+):(\d+)", text)
    if not numbers:
        raise ConfigError(
            f"--sparsity {text}: unknown pattern{nearest(text, WORDS)}; give unstructured, or N:M such as 2:4"
        )
    kept, block = int(numbers[1]), int(numbers[2])
    if not 0 < kept < block:
        raise ConfigError(
            f"--sparsity {text}: N:M keeps N of every M weights, with 0 < N < M; give 2:4, which GPUs support"
        )
    return Pattern(kept, block)


def in_base_60(number: int) -> str:
    """Return which pattern YAML read as a number, and how to write it."""
    text = f"{number // 60}:{number % 60}"
    return f'without quotes YAML reads {text} as {number}, a number in base 60: write "{text}"'


def pattern_problems(text: str | int, ratio: float, *, default: float) -> list[str]:
    """Return what is wrong with a pattern and a `--ratio`; the default ratio counts as not given."""
    if isinstance(text, int):
        return [f"sparsity: {in_base_60(text)}"]
    try:
        pattern = parse_pattern(text)
    except ConfigError as error:
        return [str(error)]
    if ratio not in (default, pattern.ratio(ratio)):
        return [
            f"--sparsity {text} --ratio {ratio}: {text} fixes the ratio at {pattern.ratio(ratio)}; leave --ratio out"
        ]
    return []
