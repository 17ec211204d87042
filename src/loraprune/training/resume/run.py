"""Check which run a checkpoint belongs to: only the same run may continue from it.

Knows nothing about what is in a checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import nn

from loraprune.config.training import WITHOUT_EFFECT, FinetuneConfig, PruneConfig, as_dict
from loraprune.data import Rows
from loraprune.errors import CheckpointError, ConfigError, DataError
from loraprune.models.quantised import stored_parameters
from loraprune.runtime import launch
from loraprune.runtime.workspace import has_checkpoints, workspace_of
from loraprune.training.resume.files import whole_checkpoints
from loraprune.training.resume.keeper import Checkpoint

ROWS = 1024
"""rows in the digest of the data, spread over all of it"""
NUMBERS = 64
"""values in the digest of a model, at both ends of every tensor"""

logger = logging.getLogger(__name__)


def options_of(config: PruneConfig | FinetuneConfig) -> dict[str, Any]:
    """Return the job and the options that affect the result, as JSON values."""
    options = {name: value for name, value in as_dict(config).items() if name not in WITHOUT_EFFECT}
    found: dict[str, Any] = json.loads(json.dumps({"job": config.job, "options": options}))
    return found


def identity_of(config: PruneConfig | FinetuneConfig, model: nn.Module, rows: Rows, *, teacher: str) -> dict[str, Any]:
    """Return a checkpoint's record of a run: options, digests of the dense model and the rows, and the processes that share it."""
    return options_of(config) | {
        "model": digest_of_model(model), "data": digest_of_rows(rows), "teacher": teacher,
        "processes": launch.count(), "sharded": launch.is_sharded(),
    }  # fmt: skip


def newest_checkpoint(workspace: Path, config: PruneConfig | FinetuneConfig) -> Checkpoint | None:
    """Return the newest complete checkpoint, or None if a run must start from its beginning.

    Raises:
        ConfigError: if it belongs to a run with other options.
    """
    for folder, manifest in whole_checkpoints(workspace):
        run = manifest["run"]
        check_options(options_of(config), run, folder)
        logger.info("continuing from %s", folder)
        return Checkpoint(folder, run)
    logger.info("no complete checkpoint in %s: starting from the beginning", workspace)
    return None


def is_finished(config: PruneConfig | FinetuneConfig, place: Path) -> bool:
    """Return whether an earlier attempt finished the run of a folder inside a workspace.

    Raises:
        ConfigError: if it was a run with other options.
    """
    if not place.is_dir() or has_checkpoints(workspace_of(place)):
        return False
    then = yaml.safe_load((place / "run.yaml").read_text(encoding="utf-8"))
    then = {name: value for name, value in then.items() if name not in WITHOUT_EFFECT}
    check_options(options_of(config), {"job": config.job, "options": then}, place)
    return True


def check_options(now: Mapping[str, Any], then: Mapping[str, Any], folder: Path) -> None:
    """Raise a ConfigError that names all options that differ from those of a checkpoint."""
    mine, theirs = now["options"], then["options"]
    differing = [
        f"--{name.replace('_', '-')} {mine.get(name)} (was {theirs.get(name)})"
        for name in sorted(mine.keys() | theirs.keys())
        if mine.get(name) != theirs.get(name)
    ]
    if now["job"] != then["job"]:
        differing.insert(0, f"{now['job']} (was {then['job']})")
    if differing:
        raise ConfigError(
            f"--resume: {folder} belongs to a run with other options: {', '.join(differing)}; give the former options, or "
            "start again with --overwrite instead of --resume"
        )


def check_same(checkpoint: Checkpoint, run: Mapping[str, Any]) -> None:
    """Compare the digests of model and data, and how many processes there are and what each holds.

    Raises:
        ConfigError: if there were more or fewer processes, as each would see other rows; or if the model was in parts and is
            whole now, or the other way round: one is masked, the other cut.
        CheckpointError: if the model's weights are others than before.
        DataError: if the rows to train on are.
    """
    if checkpoint.run["processes"] != run["processes"]:
        raise ConfigError(
            f"--resume: {checkpoint.folder} was made by {checkpoint.run['processes']} processes, not {run['processes']}; launch as "
            "many, or start again with --overwrite instead of --resume"
        )
    if checkpoint.run["sharded"] != run["sharded"]:
        then, now = ("with" if each["sharded"] else "without" for each in (checkpoint.run, run))
        raise ConfigError(
            f"--resume: {checkpoint.folder} was made {then} FSDP, not {now} it; launch as before, or start again with --overwrite "
            "instead of --resume"
        )
    if checkpoint.run["model"] != run["model"]:
        raise CheckpointError(
            f"--model: its weights are not those that {checkpoint.folder} was made with; give the same model, or start again "
            "with --overwrite instead of --resume"
        )
    if checkpoint.run["data"] != run["data"]:
        raise DataError(
            f"--data: the rows to train on are not those that {checkpoint.folder} was made with; give the same data, or start "
            "again with --overwrite instead of --resume"
        )


def digest_of_model(model: nn.Module) -> str:
    """Return a digest of names, shapes and some numbers of every parameter."""
    found = hashlib.sha256()
    for name, tensor in stored_parameters(model):
        flat = tensor.detach().flatten()
        ends = torch.cat((flat[:NUMBERS], flat[-NUMBERS:])).double().cpu()
        found.update(f"{name} {tuple(tensor.shape)}".encode() + ends.numpy().tobytes())
    return found.hexdigest()


def digest_of_rows(rows: Rows) -> str:
    """Return a digest of the number of rows and of some of them; a row is a mapping of numbers or of sequences of them."""
    found = hashlib.sha256(str(len(rows)).encode())
    for place in spread(len(rows)):
        for name, value in rows[place].items():
            found.update(str(name).encode() + np.asarray(value).tobytes())
    return found.hexdigest()


def spread(count: int) -> Iterable[int]:
    """Return at most ROWS numbers below `count`, spread over all of them."""
    return sorted({place * count // min(count, ROWS) for place in range(min(count, ROWS))})
