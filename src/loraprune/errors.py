"""Every error a user can meet. A message says what is wrong, the value, and what to do.

LoraPruneError
├── ConfigError            an option or key is wrong
├── UnsupportedModelError  no family for this model, or a setting the family does not handle
├── GroupMismatchError     the model's tensors are not what its family describes
├── PlanError              the units asked for cannot be kept or removed
├── DataError              training or evaluation data is missing, empty or malformed
├── CheckpointError        a model folder or file is missing, torn or cannot be written
├── NumericsError          NaN or infinity in weights, loss, gradients or scores
└── VerificationError      masked, sliced and reloaded model disagree (a defect: exit code 1)
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LoraPruneError(Exception):
    """Base of all errors raised on purpose."""


class ConfigError(LoraPruneError, ValueError):
    """An option or key is wrong."""


class UnsupportedModelError(LoraPruneError, LookupError):
    """The model belongs to no known family, or uses a setting its family does not handle."""


class GroupMismatchError(LoraPruneError, ValueError):
    """A tensor does not have the size that the family describes."""


class PlanError(LoraPruneError, ValueError):
    """The units asked for cannot be kept or removed."""


class DataError(LoraPruneError, ValueError):
    """Training or evaluation data is missing, empty or malformed."""


class CheckpointError(LoraPruneError, OSError):
    """A model folder or file is missing, torn or cannot be written."""


class NumericsError(LoraPruneError, ArithmeticError):
    """NaN or infinity where a number is needed."""


class VerificationError(LoraPruneError, RuntimeError):
    """Masked, sliced and reloaded model disagree."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return " (did you mean X?)" for the closest known word, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
