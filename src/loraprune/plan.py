"""Plans: which units of every group are kept, and how many parameters remain.

Knows nothing about where scores come from or how a plan is carried out.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from jaxtyping import Int

from loraprune.errors import CheckpointError, PlanError
from loraprune.groups import Group, Units, layer_path

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Plan:
    """Units kept in every group, as ascending indices into the dense model's units."""

    units: Mapping[str, int]
    """units that each group has in the dense model"""
    kept: Mapping[str, tuple[int, ...]]
    parts: Mapping[str, int] = field(default_factory=dict)
    """groups whose units are query heads -> key-value heads, each of which keeps the same number of them"""
    indices: Mapping[str, Int[np.ndarray, " kept"]] = field(init=False, compare=False, repr=False)
    """`kept` as arrays, to be read only"""

    def __post_init__(self) -> None:
        if self.units.keys() != self.kept.keys():
            odd = sorted(self.units.keys() ^ self.kept.keys())[0]
            raise PlanError(
                f"group {odd!r} is in only one half of the plan: every group needs its size and its kept units"
            )
        for name, kept in self.kept.items():
            if not kept and not self._is_layer_gone(name):
                raise PlanError(f"group {name!r} keeps no unit: keep at least one")
        object.__setattr__(self, "indices", {name: self._indices(name) for name in self.kept})
        for name, parts in self.parts.items():
            self._check_parts(name, parts)

    def _indices(self, name: str) -> Int[np.ndarray, " kept"]:
        """Return a group's units as an array, and refuse those that are out of bounds or out of order."""
        kept, units = self.kept[name], self.units[name]
        ends_fit = not kept or 0 <= kept[0] <= kept[-1] < units
        with contextlib.suppress(OverflowError):
            found = np.asarray(kept, dtype=np.int64)
            if ends_fit and (np.diff(found) > 0).all():
                return found
        raise PlanError(f"group {name!r} keeps {list(kept)[:8]}…: ascending indices below {units} are needed")

    def _check_parts(self, name: str, parts: int) -> None:
        """Refuse other numbers of query heads for one key-value head than for another: no forward pass can share them out."""
        units = self.units.get(name, 0)
        if not 0 < parts <= units or units % parts:
            raise PlanError(f"group {name!r}: {units} units are not equally many in {parts} parts")
        each = np.bincount(self.indices[name] // (units // parts), minlength=parts)
        if each.min() != each.max():
            raise PlanError(
                f"group {name!r} keeps {each.tolist()} query heads of its key-value heads: the same number of each is needed"
            )

    def _is_layer_gone(self, name: str) -> bool:
        """Return whether the layer of a group keeps nothing at all: then it is as if it were not there."""
        layer = layer_path(name)
        return layer is not None and not any(kept for other, kept in self.kept.items() if layer_path(other) == layer)

    @classmethod
    def full(cls, groups: Sequence[Group]) -> Plan:
        """Return the plan that keeps everything."""
        return cls(
            {g.name: g.units for g in groups},
            {g.name: tuple(range(g.units)) for g in groups},
            {g.name: g.parts for g in groups if g.kind == "query"},
        )

    @property
    def is_full(self) -> bool:
        """Return whether every unit is kept."""
        return all(len(kept) == self.units[name] for name, kept in self.kept.items())

    def keeping(self, kept: Mapping[str, Units]) -> Plan:
        """Return the plan that keeps other units of the same groups."""
        return replace(self, kept={name: tuple(np.asarray(units, np.int64).tolist()) for name, units in kept.items()})

    def positions(self, smaller: Plan) -> dict[str, Int[np.ndarray, " units"]]:
        """Return the positions, among the units kept here, of the units that `smaller` keeps."""
        found = {}
        for name, here in self.indices.items():
            wanted, stays = smaller.indices[name], np.zeros(self.units[name], dtype=bool)
            stays[here] = True
            missing = wanted[~stays[wanted]]
            if len(missing):
                raise PlanError(f"group {name!r}: unit {missing[0]} was removed before and cannot come back")
            found[name] = np.searchsorted(here, wanted)
        return found

    def then(self, later: Plan) -> Plan:
        """Return the plan for the dense model that this one and a later one amount to; units of `later` are those kept here.

        Raises:
            PlanError: if `later` keeps other units.
        """
        found = {}
        for name, kept in self.kept.items():
            units = later.units.get(name)
            if units != len(kept):
                raise PlanError(f"group {name!r}: {len(kept)} units are kept, the later plan is about {units}")
            found[name] = tuple(kept[place] for place in later.kept[name])
        return Plan(self.units, found, self.parts)

    def counts(self) -> dict[str, int]:
        """Return group -> how many units are kept."""
        return {name: len(kept) for name, kept in self.kept.items()}

    def to_json(self) -> str:
        """Return the text of a plan.json."""
        parts = {name: {"parts": parts} for name, parts in self.parts.items()}
        groups = {
            name: {"units": self.units[name], **parts.get(name, {}), "kept": list(kept)}
            for name, kept in self.kept.items()
        }
        return json.dumps({"format": FORMAT, "groups": groups}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read the text of a plan.json.

        Raises:
            CheckpointError: if the text is malformed.
        """
        try:
            groups = json.loads(text)["groups"]
            units = {str(name): _whole(entry["units"]) for name, entry in groups.items()}
            kept = {str(name): tuple(_whole(unit) for unit in entry["kept"]) for name, entry in groups.items()}
            parts = {str(name): _whole(entry["parts"]) for name, entry in groups.items() if "parts" in entry}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(
                f"plan.json is malformed ({error}): the file written by `loraprune prune` is needed"
            ) from None
        return cls(units, kept, parts)

    @classmethod
    def read(cls, folder: Path) -> Plan:
        """Read the plan of an output folder."""
        path = folder / "plan.json"
        if not path.is_file():
            raise CheckpointError(f"no plan.json in {str(folder)!r}: name a folder written by `loraprune prune`")
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"plan.json in {str(folder)!r} cannot be read ({error}): copy it again") from None
        return cls.from_json(text)


def _whole(value: object) -> int:
    """Return a whole number; rounding another one would hide a damaged file."""
    if type(value) is not int:
        raise ValueError(f"{str(value)[:40]!r} is not a whole number")
    return value


@dataclass(frozen=True, slots=True)
class Budget:
    """Parameters that the units own: the basis of every ratio."""

    unit_parameters: Mapping[str, int]
    """group -> parameters of one of its units in the dense model, without adapters"""
    units: Mapping[str, int]
    shared: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """two groups -> parameters of the dense model that belong to a unit of each, as one owns rows and the other columns"""

    @property
    def prunable(self) -> int:
        """Return the parameters of all units of the dense model."""
        return self.kept(self.units)

    def kept(self, counts: Mapping[str, int]) -> int:
        """Return the parameters of the units when each group keeps `counts` units."""
        kept = sum(each * counts[name] for name, each in self.unit_parameters.items())
        for (one, other), parameters in self.shared.items():
            # Counted with the rows that are kept and with the columns, but there only where both are.
            rows, columns = self.units[one], self.units[other]
            kept -= (
                parameters
                * (counts[one] * columns + counts[other] * rows - counts[one] * counts[other])
                // (rows * columns)
            )
        return kept

    def ratio(self, counts: Mapping[str, int]) -> float:
        """Return the fraction of the prunable parameters that is removed."""
        return 1 - self.kept(counts) / self.prunable
