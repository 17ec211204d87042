"""Unit scores over time: the moving average of each step's scores.

Knows nothing about how a score is computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from loraprune.errors import ConfigError, NumericsError
from loraprune.plan import Plan
from loraprune.runtime.hub import scores_problem


class RunningScores:
    """One score per unit of the dense model; removed units keep their last score.

    Source: Eq 11, the average starts at zero: a common factor without effect on the ranking.
    """

    def __init__(self, units: Mapping[str, int], *, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.values = {name: torch.zeros(count, dtype=torch.float64) for name, count in units.items()}

    def load(self, values: Mapping[str, Float[Tensor, " units"]]) -> None:
        """Use saved scores of all units."""
        self.values = dict(values)
        self.updates = 1

    def update(self, scores: Mapping[str, Float[Tensor, " kept"]], plan: Plan) -> None:
        """Add the scores of the units that `plan` keeps to the average.

        Raises:
            NumericsError: if a score is NaN or infinite; nothing is changed then.
        """
        for name, new in scores.items():
            if not torch.isfinite(new).all():
                raise NumericsError(f"a score of {name!r} is {_first_bad(new)}")
        for name, new in scores.items():
            index = torch.tensor(plan.kept[name], dtype=torch.long)
            old = self.values[name][index]
            self.values[name][index] = self.decay * old + (1 - self.decay) * new.to(old)
        self.updates += 1

    def check(self, name: str, units: Sequence[int]) -> None:
        """Check that the scores of a group's units distinguish them.

        Raises:
            NumericsError: if none were gathered, or all are the same.
        """
        values = self.values[name][torch.tensor(units)]
        if not self.updates or values.min() == values.max():
            raise NumericsError(
                f"all units of {name!r} score {float(values[0])}: they cannot be ranked, so none is removed; "
                "train at least one step first and check that gradients reach the adapters"
            )

    def ranked(self, name: str, units: Sequence[int], *, parts: int = 1) -> list[int]:
        """Return the units from best to worst; ties keep the lower index first.

        Of several equal parts, such as the query heads of each key-value head, the best of each come first, then the second best of
        each: as many units of one part as of another are then kept. `units` has equally many of each.
        """
        values = self.values[name][torch.tensor(units, dtype=torch.long)].view(parts, -1)
        places = torch.argsort(values, dim=1, descending=True, stable=True)
        places += torch.arange(parts).unsqueeze(1) * values.shape[1]
        return [units[place] for place in places.T.flatten().tolist()]


def _first_bad(values: Tensor) -> float:
    return float(values[~torch.isfinite(values)][0])


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
