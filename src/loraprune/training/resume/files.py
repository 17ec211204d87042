"""One checkpoint on disk: a tree of tensors and plain values as safetensors and JSON, sealed by checksums; no pickles.

Knows nothing about what the tree means.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from jaxtyping import Shaped
from safetensors.torch import load_file, save_file
from torch import Tensor

from loraprune.runtime.atomic import MANIFEST, read_sealed, replace_folder, seal
from loraprune.runtime.workspace import CHECKPOINT

FORMAT = 1
KEPT = 2
"""checkpoints on disk: the newest, and the previous one in case the newest is damaged"""
TENSORS, VALUES = "state.safetensors", "state.json"
TENSOR_KEY = "$tensor"
"""key in the JSON at the place of a tensor, with the tensor's name in the other file"""

Tree: TypeAlias = Any
"""dicts and lists of tensors, numbers, words, booleans and None"""

logger = logging.getLogger(__name__)


def split(tree: Tree, tensors: dict[str, Shaped[Tensor, "..."]], path: str = "") -> Any:
    """Return a tree without its tensors, which are added to `tensors` by their places."""
    if isinstance(tree, Tensor):
        # Copies: two names of one storage cannot be saved.
        tensors[path] = tree.detach().cpu().clone().contiguous()
        return {TENSOR_KEY: path}
    if isinstance(tree, Mapping):
        return {str(key): split(value, tensors, f"{path}/{key}".lstrip("/")) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [split(value, tensors, f"{path}/{place}") for place, value in enumerate(tree)]
    return tree


def join(values: Any, tensors: Mapping[str, Shaped[Tensor, "..."]]) -> Tree:
    """Put tensors back; keys are words and sequences are lists now."""
    if isinstance(values, dict):
        if set(values) == {TENSOR_KEY}:
            return tensors[values[TENSOR_KEY]]
        return {key: join(value, tensors) for key, value in values.items()}
    return [join(value, tensors) for value in values] if isinstance(values, list) else values


def write_tree(folder: Path, tree: Tree) -> None:
    """Write a tree into a folder."""
    tensors: dict[str, Tensor] = {}
    values = split(tree, tensors)
    save_file(tensors, folder / TENSORS)
    (folder / VALUES).write_text(json.dumps(values, allow_nan=False) + "\n", encoding="utf-8")


def read_tree(folder: Path) -> Tree:
    """Read what `write_tree` wrote, with all tensors on the CPU."""
    return join(json.loads((folder / VALUES).read_text(encoding="utf-8")), load_file(folder / TENSORS))


def new_checkpoint(workspace: Path, step: int) -> Path:
    """Return an empty folder to write a checkpoint into; it is not a checkpoint until `finish_checkpoint`."""
    folder = workspace / f".{CHECKPOINT}{step:08d}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def finish_checkpoint(folder: Path, about: Mapping[str, Any]) -> Path:
    """Seal a checkpoint, give it its name, and remove all but the newest."""
    seal(folder, {"format": FORMAT, **about})
    place = folder.with_name(folder.name.removeprefix("."))
    replace_folder(folder, place)
    for old in sorted(place.parent.glob(f"{CHECKPOINT}*"))[:-KEPT]:
        gone = old.rename(old.with_name("." + old.name))  # a half-removed one would be taken for a torn one
        shutil.rmtree(gone, ignore_errors=True)
    return place


def whole_checkpoints(workspace: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield checkpoints and their manifests, newest first; a damaged one is reported and skipped."""
    for folder in sorted(workspace.glob(f"{CHECKPOINT}*"), reverse=True):
        try:
            manifest = read_sealed(folder)
            if manifest.get("format") != FORMAT:
                raise ValueError(f"{MANIFEST} has format {manifest.get('format')}, this version reads {FORMAT}")
        except ValueError as error:
            logger.warning("checkpoint %s is skipped: %s", folder, error)
        else:
            yield folder, manifest
