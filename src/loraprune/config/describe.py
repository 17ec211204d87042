"""Describe options for people: their type, default, help text and group.

Help, shell completion and the options page of the documentation are made from these descriptions. Imports no torch.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from docstring_parser import parse_from_object

from loraprune.config.base import Options, dashed
from loraprune.config.values import Fraction

GROUPS: dict[str, tuple[str, ...]] = {
    "model and data": (
        "model", "models", "against", "data", "eval", "columns", "output", "overwrite", "repo", "private", "plots", "task", "length",
        "rows", "batch", "trust_remote_code",
    ),
    "how much to remove": (
        "ratio", "size", "sizes", "parameters", "file_size", "memory", "speedup", "timed", "context", "max_drop", "tries", "heads",
        "ffn", "heads_ratio", "ffn_ratio", "layers", "sparsity", "kinds", "round", "vocabulary",
    ),
    "what to remove": ("criterion", "power", "normalize", "decay", "score_steps", "scores", "allocation", "depth", "history"),
    "when to remove": ("schedule", "interval", "warmup", "cooldown", "rounds", "shrink"),
    "repair after a removal": ("compensate", "local", "local_all", "end_to_end", "calibration", "teacher", "distill"),
    "training": (
        "steps", "epochs", "accumulate", "lr", "lora_plus", "clip", "optimizer", "adapter", "rank", "alpha", "dropout", "seed",
    ),
    "evaluation and logs": ("eval_every", "patience", "log", "html", "tasks", "task_data", "limit", "shots", "record"),
    "speed": ("batches", "tokens", "repeats", "unmerged", "formats"),
    "format": ("format", "quantization", "tensor_parallel", "max_shard_size"),
    "interruption": ("save", "resume"),
    "device and memory": ("device", "dtype", "quantize", "base", "checkpointing", "compile", "gpus", "sharding"),
    "comparison": ("grid", "runs", "baselines", "reference", "jobs", "keep"),
}  # fmt: skip
"""title -> names of the options below it, over all commands"""

NAMES = {
    "model": "MODEL", "models": "MODEL", "against": "MODEL", "data": "DATA", "eval": "DATA", "output": "FOLDER", "plots": "FOLDER",
    "task_data": "FOLDER", "scores": "FILE", "repo": "ORG/NAME", "parameters": "COUNT", "file_size": "SIZE", "memory": "SIZE",
    "sparsity": "N:M", "max_shard_size": "SIZE", "sizes": "SIZES",
    "task": "TASK", "tasks": "TASKS", "kinds": "KINDS", "criterion": "NAME", "reference": "NAME", "baselines": "NAME", "format": "FORMAT",
    "formats": "FORMATS", "quantization": "TYPE", "log": "LOGGERS", "vocabulary": "TOKENS", "columns": "ROLE=COLUMN",
}  # fmt: skip
"""option -> word that stands for its value, where the type does not say it"""
PATHS = {"model", "models", "against", "data", "eval", "output", "plots", "task_data", "scores"}
"""options whose value may be a path"""


@dataclass(frozen=True, slots=True)
class Option:
    """One option as a person sees it."""

    name: str
    """the field of the configuration class, with underscores"""
    hint: Any
    default: Any
    """MISSING if the option is required"""
    text: str
    """the docstring of the field, on one line"""

    @property
    def flag(self) -> str:
        """Return the option as it is written on the command line."""
        return f"--{dashed(self.name)}"

    @property
    def is_switch(self) -> bool:
        """Return whether the flag alone means true."""
        return self.hint is bool and self.default is False

    @property
    def choices(self) -> tuple[str, ...]:
        """Return all values that are possible; nothing if there is no such list."""
        members = list(_members(self.hint))
        if bool in members:
            return ("true", "false")
        return tuple(str(choice) for one in members if get_origin(one) is Literal for choice in get_args(one))

    @property
    def metavar(self) -> str:
        """Return what stands for the value: the choices in braces, or a word."""
        if self.choices:
            return f"{{{','.join(self.choices)}}}"
        kinds = {get_origin(one) or one for one in _members(self.hint)}
        if dict in kinds:
            return "{NAME: ...}"
        word = NAMES.get(self.name) or (
            "N" if {int} & kinds or self.hint == list[int] else "X" if {float, Fraction} & kinds else "TEXT"
        )
        return f"[{word},...]" if kinds == {list} else word

    @property
    def default_text(self) -> str:
        """Return the default as it is typed; nothing for a switch, and where the text says what happens without the option."""
        default = self.default
        if default in (None, MISSING) or self.is_switch or default in ([], {}):
            return ""
        if isinstance(default, bool):
            return str(default).lower()
        return f"{default:g}" if isinstance(default, float) else str(default).replace(" ", "")


def describe(kind: type[Options]) -> list[Option]:
    """Return all options of a configuration class in the order of `GROUPS`.

    Raises:
        KeyError: if an option has no docstring or no group.
    """
    texts: dict[str, str] = {}
    for base in kind.__mro__[:-1]:
        for entry in parse_from_object(base).params:
            texts.setdefault(entry.arg_name, " ".join((entry.description or "").split()))
    hints = get_type_hints(kind)
    order = {name: place for place, name in enumerate(name for names in GROUPS.values() for name in names)}
    found = []
    for one in fields(kind):
        default = one.default_factory() if one.default_factory is not MISSING else one.default
        found.append(Option(one.name, hints[one.name], default, texts[one.name]))
    return sorted(found, key=lambda option: order[option.name])


def grouped(options: Sequence[Option]) -> dict[str, list[Option]]:
    """Return title -> options, without empty groups."""
    known = {option.name: option for option in options}
    found = {title: [known[name] for name in names if name in known] for title, names in GROUPS.items()}
    return {title: members for title, members in found.items() if members}


def _members(hint: Any) -> Iterator[Any]:
    """Yield the types that a union allows, or the type itself, without None."""
    if get_origin(hint) in (Union, types.UnionType):
        for one in get_args(hint):
            yield from _members(one)
    elif hint is not types.NoneType:
        yield hint
