"""How much to remove: a ratio, a size, or numbers of heads, channels and layers.

Imports no torch, so that `--help` is fast.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from loraprune.config.base import dashed, failed
from loraprune.config.deployment import DeploymentOptions
from loraprune.config.values import Fraction, parse_count
from loraprune.errors import ConfigError

AMOUNTS = ("size", "parameters", "file_size", "memory", "speedup")
"""targets that one number states, instead of --ratio"""
TARGETS = (*AMOUNTS, "heads", "ffn", "heads_ratio", "ffn_ratio", "layers")
"""options that say how much to remove, instead of --ratio"""


@dataclass(frozen=True, kw_only=True)
class TargetOptions(DeploymentOptions):
    """How much to remove: one of these options, or of those about where the model is used."""

    ratio: Fraction = 0.5
    """fraction of the prunable parameters to remove, from 0 to below 1; embeddings and output head are not prunable"""
    size: Fraction | None = None
    """fraction of all parameters of the dense model to keep, instead of --ratio, such as 80%; embeddings and output head count too"""
    parameters: str | None = None
    """target size of the whole model instead of --ratio, such as 600M or 1.2B"""
    heads: int | None = None
    """query heads to keep in every layer, instead of --ratio; without --ffn all FFN channels are kept"""
    ffn: int | None = None
    """FFN channels to keep in every layer, instead of --ratio; without --heads all heads are kept"""
    heads_ratio: Fraction | None = None
    """fraction of the heads to remove from every layer, instead of --ratio; without --ffn-ratio all FFN channels are kept"""
    ffn_ratio: Fraction | None = None
    """fraction of the FFN channels to remove from every layer, instead of --ratio; without --heads-ratio all heads are kept"""
    layers: int | None = None
    """layers to keep, instead of --ratio; calibration rows decide which ones go; without --heads and --ffn the others keep all their
    units; needs --schedule oneshot"""

    @property
    def has_ratio(self) -> bool:
        """Return whether --ratio is the target."""
        return self.other_targets is None

    @property
    def other_targets(self) -> dict[str, Any] | None:
        """Return the options that state the target instead of --ratio, with None for those left out; None if --ratio is the target."""
        values = {name: getattr(self, name) for name in TARGETS}
        return values if any(value is not None for value in values.values()) else None

    @property
    def has_dimensions(self) -> bool:
        """Return whether widths or a number of layers are given instead of a ratio."""
        shape = (self.heads, self.ffn, self.heads_ratio, self.ffn_ratio, self.layers)
        return any(value is not None for value in shape)

    def problems(self) -> list[str]:
        """Return one sentence for every option that is wrong."""
        found = [*super().problems(), *self._wrong_targets(), *self._two_targets()]
        if self.parameters is not None:
            try:
                parse_count(self.parameters)
            except ConfigError as error:
                found.append(str(error))
        return found

    def _wrong_targets(self) -> list[str]:
        """Return one sentence for every option whose own value is wrong."""
        return failed(
            (0 <= self.ratio < 1, f"--ratio {self.ratio}: a fraction in [0, 1) is needed, such as 0.5 or 50%"),
            (
                self.size is None or 0 < self.size <= 1,
                f"--size {self.size}: a fraction above 0 and at most 1 is needed, such as 80%",
            ),
            (self.heads is None or self.heads > 0, f"--heads {self.heads}: at least 1 is needed"),
            (self.ffn is None or self.ffn > 0, f"--ffn {self.ffn}: at least 1 is needed"),
            (self.layers is None or self.layers > 0, f"--layers {self.layers}: at least 1 is needed"),
            *(
                (ratio is None or 0 <= ratio < 1, f"--{name} {ratio}: a fraction in [0, 1) is needed, such as 0.5")
                for name, ratio in (("heads-ratio", self.heads_ratio), ("ffn-ratio", self.ffn_ratio))
            ),
        )

    def _two_targets(self) -> list[str]:
        """Return one sentence for every target that another one rules out."""
        return failed(
            (
                self.heads is None or self.heads_ratio is None,
                f"--heads {self.heads} --heads-ratio {self.heads_ratio}: give one of the two",
            ),
            (
                self.ffn is None or self.ffn_ratio is None,
                f"--ffn {self.ffn} --ffn-ratio {self.ffn_ratio}: give one of the two",
            ),
            (
                self.ratio == TargetOptions.ratio or self.has_ratio,
                second_target(self.ratio, self.other_targets or {}),
            ),
            (
                sum(getattr(self, name) is not None for name in AMOUNTS) + self.has_dimensions <= 1,
                f"{typed(self.other_targets or {})}: give one target only; leave the others out",
            ),
        )


def second_target(ratio: float, others: Mapping[str, Any]) -> str:
    """Return what is wrong with --ratio beside other targets, of which those that are None are not given."""
    return f"--ratio {ratio} {typed(others)}: give one target only; leave --ratio out"


def typed(options: Mapping[str, Any]) -> str:
    """Return options as typed on the command line, without those that are None."""
    return " ".join(f"--{dashed(name)} {value}" for name, value in options.items() if value is not None)
