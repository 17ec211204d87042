"""Count the zeros in a folder's files, and check the pattern block by block.

Knows nothing about how the zeros came about.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Bool, Float
from safetensors import safe_open
from torch import Tensor

from loraprune.config.sparsity import Pattern
from loraprune.errors import VerificationError


@dataclass(frozen=True, slots=True)
class SavedZeros:
    """Zeros among the weights of the prunable projections in a folder."""

    zeros: int
    weights: int

    @property
    def ratio(self) -> float:
        """Return the fraction of zeros."""
        return self.zeros / self.weights


def saved_weights(folder: Path, names: set[str]) -> Iterator[tuple[str, Float[Tensor, "out in_"]]]:
    """Yield some tensors of a folder's safetensors files, one in memory at a time."""
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in names & set(tensors.keys()):
                yield name, tensors.get_tensor(name)


def count_saved(
    folder: Path, kept: Mapping[str, Bool[Tensor, "out in_"]], pattern: Pattern, *, transposed: bool
) -> SavedZeros:
    """Count the zeros of the projections in `kept`, and check that masked weights are zero and every block is right.

    `transposed` says that the files store weights as (in, out).

    Raises:
        VerificationError: if a masked weight is not zero, a block has too few zeros, or a projection is missing.
    """
    zeros = weights = 0
    missing = set(kept)
    for name, stored in saved_weights(folder, {f"{path}.weight" for path in kept}):
        path = name.removesuffix(".weight")
        missing.discard(path)
        left = (stored.T if transposed else stored) != 0
        if (left & ~kept[path].to(left.device)).any():
            raise VerificationError(f"{path!r} was saved with non-zero weights where it is masked; {PLEASE}")
        check_blocks(path, left, pattern)
        zeros, weights = zeros + left.numel() - int(left.sum()), weights + left.numel()
    if missing:
        raise VerificationError(f"{sorted(missing)[0]!r} is missing in the saved model; {PLEASE}")
    return SavedZeros(zeros, weights)


def check_blocks(path: str, left: Bool[Tensor, "out in_"], pattern: Pattern) -> None:
    """Raise a VerificationError unless at most N of every M neighbouring inputs are `left`."""
    if not pattern.is_blocked:
        return
    most = int(left.unflatten(-1, (-1, pattern.block)).sum(-1).max())
    if most > pattern.kept:
        raise VerificationError(
            f"{path!r} has {most} non-zero weights in a block of {pattern.block}, not {pattern.name}; {PLEASE}"
        )


PLEASE = "this is a defect"
