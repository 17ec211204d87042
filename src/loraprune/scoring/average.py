"""Unit scores over time: the moving average of each step's scores.

Knows nothing about how a score is computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from loraprune.errors import ConfigError, NumericsError
from loraprune.groups import Units
from loraprune.plan import Plan
from loraprune.runtime.hub import scores_problem


class RunningScores:
    """One score per unit of the dense model; removed units keep their last score.

    All scores are one flat tensor where they are computed, so that an update waits for nothing. Reading `values` waits for the device.

    Source: Eq 11, the average starts at zero: a common factor without effect on the ranking.
    """

    def __init__(self, units: Mapping[str, int], *, decay: float) -> None:
        self.decay, self.units = decay, dict(units)
        self._flat = torch.zeros(sum(units.values()), dtype=torch.float64)
        self._read: dict[str, Tensor] | None = None
        """copies on the CPU, until the next update"""
        self._plan: Plan | None = None
        self._index: Tensor | None = None
        """places in the flat tensor of the units that the last plan keeps; None for all"""
        self._last: dict[str, Tensor] = {}

    @property
    def values(self) -> Mapping[str, Float[Tensor, " units"]]:
        """Return group -> scores of all its units, on the CPU in float64."""
        if self._read is None:
            parts = self._flat.cpu().double().split(list(self.units.values()))
            self._read = dict(zip(self.units, parts, strict=True))
        return self._read

    def load(self, values: Mapping[str, Float[Tensor, " units"]]) -> None:
        """Use saved scores of all units."""
        self._flat, self._read = torch.cat([values[name].double() for name in self.units]), None

    @torch.no_grad()
    def update(
        self, scores: Mapping[str, Float[Tensor, " kept"]], plan: Plan, *, finite: Bool[Tensor, ""] | None = None
    ) -> Bool[Tensor, ""]:
        """Add the scores of the units that `plan` keeps to the average.

        Nothing changes if one is NaN or infinite, or if `finite` is false. Neither is read here.

        Returns:
            Whether the average has changed, on the device of the scores.
        """
        self._last = {name: scores[name] for name in self.units}
        new = torch.cat(list(self._last.values()))
        self._move(new)
        index = self._places(plan)
        old = self._flat if index is None else self._flat[index]
        fine = torch.isfinite(new).all()
        if finite is not None:
            fine &= finite
        averaged = torch.where(fine, self.decay * old + (1 - self.decay) * new.to(old.dtype), old)
        self._flat = averaged if index is None else self._flat.index_copy(0, index, averaged)
        self._read = None
        return fine

    def _move(self, new: Float[Tensor, " kept"]) -> None:
        """Move the scores to the device where new ones are computed."""
        if self._flat.device != new.device:
            self._flat, self._plan = self._flat.to(new), None

    def _places(self, plan: Plan) -> Int[Tensor, " kept"] | None:
        if plan is not self._plan:
            self._plan, self._index = plan, None
            if any(len(plan.kept[name]) < count for name, count in self.units.items()):
                starts = accumulate(self.units.values(), initial=0)
                parts = [start + plan.indices[name] for name, start in zip(self.units, starts, strict=False)]
                self._index = torch.from_numpy(np.concatenate(parts)).to(self._flat.device)
        return self._index

    def problem(self) -> str | None:
        """Return which score of the last update is NaN or infinite, in one sentence."""
        for name, new in self._last.items():
            bad = new[~torch.isfinite(new)]
            if len(bad):
                return f"a score of {name!r} is {float(bad[0])}"
        return None

    def check(self, name: str, units: Units) -> None:
        """Check that the scores of a group's units distinguish them.

        Raises:
            NumericsError: if none were gathered, or all are the same.
        """
        values = self.values[name].numpy()[np.asarray(units, np.int64)]
        if values.min() == values.max():
            raise NumericsError(
                f"all units of {name!r} score {float(values[0])}: they cannot be ranked, so none is removed; "
                "train at least one step first and check that gradients reach the adapters"
            )

    def best(self, name: str, units: Units, count: int, *, parts: int = 1) -> Int[np.ndarray, " count"]:
        """Return the first `count` units of `ranked`, at least one, in ascending order."""
        if parts > 1:
            return np.sort(np.asarray(self.ranked(name, units, parts=parts)[:count], np.int64))
        values = self.values[name].numpy()[np.asarray(units, np.int64)]
        lowest = np.partition(values, -count)[-count]
        chosen = values > lowest
        ties = np.flatnonzero(values == lowest)
        chosen[ties[: count - np.count_nonzero(chosen)]] = True
        return np.asarray(units, np.int64)[chosen]

    def ranked(self, name: str, units: Units, *, parts: int = 1) -> list[int]:
        """Return the units from best to worst; ties keep the lower index first.

        Of several equal parts, such as the query heads of each key-value head, the best of each come first, then the second best of
        each: as many units of one part as of another are then kept. `units` has equally many of each.
        """
        index = torch.as_tensor(np.asarray(units, np.int64))
        values = self.values[name][index].view(parts, -1)
        places = torch.argsort(values, dim=1, descending=True, stable=True)
        places += torch.arange(parts).unsqueeze(1) * values.shape[1]
        found: list[int] = index[places.T.flatten()].tolist()
        return found


def read_scores(path: str, units: Mapping[str, int]) -> dict[str, Float[Tensor, " units"]]:
    """Read the scores.safetensors of an earlier run; `units` are the groups of the model and their sizes.

    Raises:
        ConfigError: if there is no such file, it is torn, or it belongs to another model.
    """
    if problem := scores_problem(path):
        raise ConfigError(f"--scores {path}: {problem}")
    try:
        found = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"--scores {path}: it cannot be read ({error}); name a scores.safetensors") from None
    sizes = {name: len(values) for name, values in found.items()}
    if sizes != dict(units):
        odd = sorted(name for name in sizes.keys() | units.keys() if sizes.get(name) != units.get(name))[0]
        raise ConfigError(
            f"--scores {path}: {sizes.get(odd, 'no')} scores of {odd!r}, where the model has {units.get(odd, 'no')} units; "
            "name the scores of a run of this model"
        )
    if not all(torch.isfinite(values).all() for values in found.values()):
        raise ConfigError(f"--scores {path}: a score is NaN or infinite; name the scores of a run that ended well")
    return {name: values.double() for name, values in found.items()}
