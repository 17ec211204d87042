"""The option that asks for several sizes from one run. Imports no torch, so that `--help` is fast."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeVar

from loraprune.config.base import Options, failed
from loraprune.config.values import Fraction, read_fraction

Kind = TypeVar("Kind", bound="SizesOptions")


@dataclass(frozen=True, kw_only=True)
class SizesOptions(Options):
    """Several sizes from one run."""

    sizes: list[Fraction] | str | None = None
    """several fractions of all parameters of the dense model to keep, instead of --ratio, such as 90%,80%,60%: one run that continues from
    size to size writes a verified folder for each, OUTPUT/90 and so on, and recommends one. The sizes share --steps or --epochs,
    --calibration, --end-to-end and --local in equal parts"""

    @property
    def all_sizes(self) -> tuple[float, ...]:
        """Return the sizes, largest first; none without the option.

        Raises:
            ValueError: if one of them is not a fraction.
        """
        return tuple(sorted((read_fraction(one) for one in self._words()), reverse=True))

    def _words(self) -> list[float | str]:
        """Return the sizes as typed."""
        given = self.sizes if isinstance(self.sizes, list) else self.sizes.split(",") if self.sizes else []
        return [one.strip() if isinstance(one, str) else one for one in given]

    @property
    def sizes_given(self) -> str:
        """Return the option as typed."""
        if isinstance(self.sizes, list):
            return f"--sizes {','.join(one if isinstance(one, str) else in_percent(one) for one in self.sizes)}"
        return f"--sizes {self.sizes}"

    def of_size(self: Kind, size: float) -> Kind:
        """Return the same options with one size as the target."""
        values: dict[str, Any] = {"sizes": None, "size": size}  # the command's options have the size
        return replace(self, **values)

    def problems(self) -> list[str]:
        """Return one sentence for every option that is wrong."""
        return [*super().problems(), *([] if self.sizes is None else self._wrong_sizes())]

    def _wrong_sizes(self) -> list[str]:
        wrong = next((one for one in self._words() if not _is_size(one)), None)
        if wrong is not None:
            return [
                f"{self.sizes_given}: {str(wrong)!r} is not a fraction above 0 and at most 1; write sizes as 90%,80%,60%"
            ]
        found = self.all_sizes
        return failed(
            (len(found) > 1, f"{self.sizes_given}: at least two sizes are needed; --size states a single one"),
            (len(set(found)) == len(found), f"{self.sizes_given}: a size is given twice; list each once"),
        )


def in_percent(size: float) -> str:
    """Return a size as typed, such as 62.5%."""
    return f"{100 * size:g}%"


def folder_of(size: float) -> str:
    """Return the name of the folder of a size, such as 62.5."""
    return f"{100 * size:g}"


def _is_size(value: float | str) -> bool:
    try:
        return 0 < read_fraction(value) <= 1
    except ValueError:
        return False
