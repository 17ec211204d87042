"""One running score for every weight of a projection, and the choice of the lowest.

Knows nothing about how a score is computed.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from loraprune.config.sparsity import Pattern
from loraprune.errors import NumericsError

GONE = -1.0
"""the score of a dropped weight: below every saliency, so that it is chosen again before any other"""
SLOWEST_IN_16_BITS = 15 / 16
ROWS_AT_ONCE = 256
"""rows whose blocks are sorted together: the order of a whole matrix would take eight bytes a weight"""


class WeightScores:
    """The moving average of Eq 11 for single weights.

    It is as large as the weights, hence bfloat16: float16 has too small a range for squared saliencies, and the eight
    bits of precision are far below the noise of a step. A decay so slow that a step's share would be rounded away gets
    float32.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, int]], *, decay: float, device: torch.device) -> None:
        self.decay, self.updates = decay, 0
        dtype = torch.bfloat16 if decay <= SLOWEST_IN_16_BITS else torch.float32
        self.values = {path: torch.zeros(shape, dtype=dtype, device=device) for path, shape in shapes.items()}

    def update(
        self, path: str, start: int, saliency: Float[Tensor, "rows in_"], *, finite: Bool[Tensor, ""] | None = None
    ) -> Float[Tensor, ""]:
        """Add the saliencies of some rows to the average; dropped weights stay dropped, and NaN is not added.

        With `finite` false none is added.

        Returns:
            The largest saliency, which is NaN or infinite if one is: a check that need not wait for the device.
        """
        old = self.values[path][start : start + len(saliency)]
        largest = saliency.amax()
        before = old.to(saliency.dtype)
        new = torch.lerp(saliency, before, self.decay)
        fine = torch.isfinite(new)
        new = torch.where(fine if finite is None else fine & finite, new, before)
        old.copy_(new.masked_fill_(old < 0, GONE))
        return largest

    def check(self, path: str) -> None:
        """Raise a NumericsError if the scores do not distinguish the remaining weights."""
        values = self.values[path]
        left = values[values >= 0]
        if not self.updates or left.amin() == left.amax():
            raise NumericsError(
                f"all weights of {path!r} score {float(left.amax())}: they cannot be ranked, so none is dropped; "
                "train at least one step first and check that gradients reach the adapters"
            )

    def drop(self, path: str, pattern: Pattern, count: int) -> Bool[Tensor, "out in_"]:
        """Drop weights until `count` of the projection are gone, and return which are left.

        In a pattern of blocks only the lowest M - N of each block can go, so that none ever loses too many.
        """
        values = self.values[path]
        values[lowest(values, candidates(values, pattern), count)] = GONE
        return self.left(path)

    def left(self, path: str) -> Bool[Tensor, "out in_"]:
        """Return which weights of a projection are not dropped."""
        return self.values[path] >= 0


def candidates(values: Float[Tensor, "out in_"], pattern: Pattern) -> Bool[Tensor, "out in_"]:
    """Return the weights that may go: all, or the lowest M - N of each block; of equal ones the first stay."""
    found = torch.ones_like(values, dtype=torch.bool)
    if not pattern.is_blocked:
        return found
    for part, free in zip(values.split(ROWS_AT_ONCE), found.split(ROWS_AT_ONCE), strict=True):
        blocks = part.unflatten(-1, (-1, pattern.block))
        best = blocks.argsort(dim=-1, descending=True, stable=True)[..., : pattern.kept]
        free.unflatten(-1, (-1, pattern.block)).scatter_(-1, best, False)
    return found


def lowest(values: Float[Tensor, "out in_"], among: Bool[Tensor, "out in_"], count: int) -> Bool[Tensor, "out in_"]:
    """Return the `count` lowest of the values `among` which to choose; of equal ones the first stay.

    The threshold is found by bisecting the bit patterns, which rise with the numbers (the only negative one is GONE): exact,
    and without the copies of the matrix that sorting it takes.
    """
    bits = values.view(torch.int16 if values.dtype == torch.bfloat16 else torch.int32)
    low, high = int(bits.min()), int(bits.max())
    while low < high:
        middle = (low + high) // 2
        if int(((bits <= middle) & among).sum()) >= count:
            high = middle
        else:
            low = middle + 1
    chosen = (bits < low) & among
    ties = ((bits == low) & among).nonzero()
    missing = count - int(chosen.sum())
    rows, columns = ties[len(ties) - missing :].unbind(1)
    chosen[rows, columns] = True
    return chosen
