"""Trained blocks on disk: a run that was stopped during blockwise reconstruction continues after the last one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from loraprune.pruning.recovery.compensation import Gain
from loraprune.pruning.recovery.trace import Trace
from loraprune.runtime import launch


def digest(trace: Trace, about: Mapping[str, object]) -> str:
    """Return a digest of the inputs of a block's training: its targets, and the options and units in `about`."""
    found = hashlib.sha256(json.dumps(about, sort_keys=True, default=list).encode())
    for path, outputs in trace.outputs.items():
        found.update(f"{path} {outputs.double().sum().item()!r} {outputs[::97].double().norm().item()!r}".encode())
    return found.hexdigest()


@dataclass(frozen=True, slots=True)
class Finished:
    """The trained blocks of one removal; those of another one, or of other options, are not read."""

    folder: Path
    key: str

    def read(self, path: str) -> tuple[Gain, dict[str, Float[Tensor, "..."]]] | None:
        """Return the result of a block's training and its tensors; None if it is not finished."""
        file = self._file(path)
        try:
            with safe_open(file, "pt") as opened:
                about = opened.metadata()
                if about.get("key") != self.key:
                    return None
                return Gain(**json.loads(about["gain"])), {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a dict
        except (OSError, SafetensorError):  # missing, or torn by a full disk
            return None

    def write(self, path: str, gain: Gain, tensors: Mapping[str, Float[Tensor, "..."]]) -> None:
        """Store a block; if the disk is full the run continues without it."""
        if not launch.is_first():
            return
        file = self._file(path)
        about = {"key": self.key, "gain": json.dumps(asdict(gain))}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file({name: each.cpu().contiguous() for name, each in tensors.items()}, f"{file}.new", about)
            Path(f"{file}.new").replace(file)
        except (OSError, SafetensorError):
            Path(f"{file}.new").unlink(missing_ok=True)

    def _file(self, path: str) -> Path:
        return self.folder / f"{path}.safetensors"
