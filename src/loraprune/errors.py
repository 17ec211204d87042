"""Every error that a user can cause. A message says what is wrong, the value, and what to do.

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
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

SECRET = re.compile(r"\bhf_[A-Za-z0-9]{16,}|(?<=://)[^/\s@]+(?=@)")
"""a token of the hub, or a name and password in an address"""
SECRET_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


class LoraPruneError(Exception):
    """Base of all errors raised on purpose."""


class ConfigError(LoraPruneError, ValueError):
    """An option or key is wrong, or several things are: one argument for each."""

    def __str__(self) -> str:
        return "; ".join(map(str, self.args))


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


def problems_of(error: LoraPruneError) -> list[str]:
    """Return one sentence for every problem of an error."""
    return [str(problem) for problem in error.args] if isinstance(error, ConfigError) else [str(error)]


class Findings:
    """Problems found by independent checks, to be reported at once."""

    def __init__(self) -> None:
        self.errors: list[LoraPruneError] = []

    @contextmanager
    def check(self) -> Iterator[None]:
        """Store an error of the block and continue after it."""
        try:
            yield
        except LoraPruneError as error:
            self.errors.append(error)

    def problems(self) -> list[str]:
        """Return one sentence for everything found, each once."""
        return list(dict.fromkeys(problem for error in self.errors for problem in problems_of(error)))

    def raise_all(self) -> None:
        """Raise the error that was found, or a ConfigError that lists all of several."""
        if len(self.errors) == 1:
            raise self.errors[0]
        if self.errors:
            raise ConfigError(*self.problems())


def hide_secrets(text: str) -> str:
    """Return a text without tokens of the hub and passwords, for messages and logs."""
    for variable in SECRET_VARIABLES:
        token = os.environ.get(variable, "")
        if len(token) >= 8:
            text = text.replace(token, "***")
    return SECRET.sub("***", text)
