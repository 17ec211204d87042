"""Calibration rows of a training: inputs of training rows spread over the data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from loraprune.errors import ConfigError
from loraprune.pruning.recovery.rows import Rows
from loraprune.training.teachers import ROW

IMAGE_TOKENS = 64
"""what an image counts towards --calibration"""


class CalibrationRows(Iterator[Rows]):
    """Inputs of training rows spread over the data, different ones each time; the loader's order does not change.

    Raises:
        ConfigError: if the data have no random access to rows.
    """

    def __init__(self, loader: Any, *, tokens: int, turn: int = 0) -> None:
        self._data, self._collate = loader.dataset, loader.collate_fn
        if not hasattr(self._data, "__getitem__") or not hasattr(self._data, "__len__"):
            raise ConfigError(
                f"compensate, local, end_to_end, searched, depth or layers: {type(self._data).__name__} has no random access to rows; "
                "train on a map-style data set"
            )
        first = self._collate([self._data[0]])
        if not isinstance(first, Mapping):  # GRPO's Trainer makes model inputs of its prompts itself
            raise ConfigError(
                "compensate, local, depth or layers: the collator of this Trainer returns no model inputs for calibration; leave them out"
            )
        longest = max(1, first["input_ids"].shape[1] if "input_ids" in first else IMAGE_TOKENS)
        self._count = min(len(self._data), max(1, tokens // longest))
        self.turn = turn

    def __next__(self) -> Rows:
        """Return the model inputs of the next rows."""
        found = self._of(self.turn)
        self.turn += 1
        return found

    def fixed(self) -> Rows:
        """Return the first rows, the same each time: what the collator draws, such as masks, too."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self._of(0)

    def _of(self, turn: int) -> Rows:
        rows = len(self._data)
        places = [(place * rows // self._count + turn) % rows for place in range(self._count)]
        batch: Rows = self._collate([self._data[place] for place in places])
        return {name: values for name, values in batch.items() if name != ROW}
