"""Read the tensors of a model's files one at a time, without a second model in memory.

Knows nothing about pruning.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from jaxtyping import Shaped
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn


class StoredTensors(Mapping[str, Tensor]):
    """Tensors of a folder's safetensors files by name, on the CPU; each is read on access and not cached."""

    def __init__(self, places: Mapping[str, tuple[Path, str]]) -> None:
        self._places = dict(places)
        """name -> file, and name in it"""

    @classmethod
    def of(cls, folder: Path) -> StoredTensors:
        """Return the tensors of all files in a folder, by the names they have there."""
        places: dict[str, tuple[Path, str]] = {}
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(file, framework="pt") as tensors:
                names = tensors.keys()
            places |= {name: (file, name) for name in names}
        return cls(places)

    def named(self, names: Mapping[str, str]) -> StoredTensors:
        """Return the same tensors by other names: new name -> present one."""
        return StoredTensors({new: self._places[old] for new, old in names.items()})

    def __getitem__(self, name: str) -> Shaped[Tensor, "..."]:
        """Read a tensor."""
        file, stored = self._places[name]
        with safe_open(file, framework="pt") as tensors:
            found: Tensor = tensors.get_tensor(stored)
        return found

    def __iter__(self) -> Iterator[str]:
        """Yield all names."""
        return iter(self._places)

    def __len__(self) -> int:
        """Return how many tensors there are."""
        return len(self._places)


def stored_tensors(model: nn.Module, folder: Path, spare: Path) -> StoredTensors:
    """Return the stored tensors of a `model` that was loaded from `folder`, by the model's own names.

    transformers stores some families under the names of its older releases: tensors of these are written to the empty folder
    `spare`, a file each, and read from there.
    """
    stored = StoredTensors.of(folder)
    own = {name for name, _ in model.named_parameters()}
    if own <= stored.keys():
        return stored
    kept = model.state_dict().keys()
    for place, (name, tensor) in enumerate((*model.named_parameters(), *model.named_buffers())):
        if name in kept:
            save_file({name: tensor.detach().cpu().contiguous()}, spare / f"{place}.safetensors")
    return StoredTensors.of(spare)
