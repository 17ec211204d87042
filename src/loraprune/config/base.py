"""Options that several commands share, each with its help text and its check.

Imports no torch, so that `--help` is fast.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from importlib.util import find_spec
from typing import Any, ClassVar, Literal, cast, get_type_hints

from loraprune.config.values import WrongValueError, has_choices, read_value, takes_text
from loraprune.errors import SECRET, ConfigError, nearest
from loraprune.runtime.hub import at_home, is_gguf, parts

Device = Literal["auto", "cpu", "cuda", "mps"]
Dtype = Literal["auto", "float32", "tf32", "bfloat16", "float16"]
Quantize = Literal["none", "8bit", "4bit", "int8"]
Adapter = Literal["lora", "rslora", "dora", "pissa", "olora"]
PLAIN = ("lora", "rslora")
"""kinds of adapters that add B A to the frozen weights and read nothing of them"""
SPLITTING = ("pissa", "olora")
"""kinds of adapters that move a part of the frozen weights into the factors when they are attached"""
QUANTISERS = {"8bit": "bitsandbytes", "4bit": "bitsandbytes", "int8": "torchao"}
"""the library behind each"""
LOGGERS = ("tensorboard", "trackio", "wandb")
"""dashboards that a run can report to"""
TASKS = ("causal-lm", "image-classification", "masked-lm", "seq2seq", "sequence-classification")
"""tasks of models; programs may register others"""
INPUTS = ("model", "models", "against", "data", "eval", "scores", "task_data")
"""options that may name a file or folder to read"""
PLACES = (*INPUTS, "output", "plots")
"""options that may be a path, where `~` is expanded"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Base of all options. They are checked together when the object is made; each subclass adds its own checks."""

    def __post_init__(self) -> None:
        for name, value in expanded({one.name: getattr(self, one.name) for one in fields(self)}).items():
            object.__setattr__(self, name, value)
        self._read_numbers()
        raise_all(self.problems())

    def _read_numbers(self) -> None:
        """Convert numbers that are given as text in Python, such as "20%".

        Raises:
            ConfigError: for a text that is not a number.
        """
        names = _numbers(cast("Any", type(self)))
        self._read({name: value for name in names if isinstance(value := getattr(self, name), str)})

    def _read(self, values: Mapping[str, Any]) -> None:
        """Set options to their values as `read_values` converts them.

        Raises:
            ConfigError: with every value of a wrong type.
        """
        if values:
            read, wrong = read_values(type(self), values)
            raise_all(list(wrong.values()))
            for name, value in read.items():
                object.__setattr__(self, name, value)

    def inputs(self) -> dict[str, str | None]:
        """Return the values of the options that may name a file to read."""
        return {name: value for name in INPUTS if isinstance(value := getattr(self, name, None), str)}

    def problems(self) -> list[str]:
        """Return one sentence for every option that is wrong."""
        # Options are written to run.yaml and the model card.
        texts = {one.name: getattr(self, one.name) for one in fields(self) if isinstance(getattr(self, one.name), str)}
        return [
            f"--{dashed(name)}: it holds a token or password; put the token in the environment variable HF_TOKEN, which is never stored"
            for name, text in texts.items()
            if SECRET.search(text)
        ]

    def idle(self) -> list[str]:
        """Return one sentence for every option that is given and changes nothing beside the others."""
        return []


@dataclass(frozen=True, kw_only=True)
class ModelOptions(Options):
    """The model."""

    model: str
    """folder, hub id or .gguf file of the model; BASE+ADAPTER merges a LoRA adapter of PEFT into its base first; `demo` is a small model
    that ships with the package"""
    task: str | None = None
    """what the model is used for, such as causal-lm, masked-lm or sequence-classification; found from the model's configuration, or
    from the columns of the data if the model has no head yet"""
    trust_remote_code: bool = False
    """run Python code from the checkpoint; use it only for checkpoints that you trust"""

    def problems(self) -> list[str]:
        """Return one sentence for every option that is wrong."""
        return [*super().problems(), *failed((bool(self.model), "--model is empty: name a folder or a hub id"))]


@dataclass(frozen=True, kw_only=True)
class MachineOptions(Options):
    """Device and precision."""

    device: Device = "auto"
    """device to run on"""
    dtype: Dtype = "auto"
    """precision of the weights. auto: the checkpoint's, or float32 on a CPU where bfloat16 is slow or changes the loss. tf32: float32
    with rounded products in training (Ampere GPUs or later). float16: with loss scaling (GPUs only)"""


@dataclass(frozen=True, kw_only=True)
class BatchOptions(Options):
    """Batch size and sequence length."""

    batch: int = 8
    """rows per forward pass and process"""
    length: int = 512
    """tokens per row, at most the model's maximum"""
    checkpointing: bool = False
    """gradient checkpointing: recompute activations in the backward pass, which saves memory and costs time"""

    def problems(self) -> list[str]:
        """Return one sentence for every option that is wrong."""
        return [
            *super().problems(),
            *failed(
                (self.batch > 0, f"--batch {self.batch}: at least 1 is needed"),
                (self.length > 1, f"--length {self.length}: at least 2 is needed"),
            ),
        ]


@dataclass(frozen=True, kw_only=True)
class WatchOptions(Options):
    """Evaluation during training, logging and early stopping."""

    eval_every: int | None = None
    """evaluate on the held-out data every N optimiser steps; by default only before and after training"""
    patience: int | None = None
    """stop early after N evaluations in a row without improvement, and keep the best; needs --eval-every, and counts only
    evaluations after the last removal"""
    log: str | None = None
    """send loss, ratio and evaluations to tensorboard, trackio or wandb (separate several with commas); TensorBoard files are written
    to OUTPUT-logs"""
    html: bool = True
    """also write report.html; for this a language model continues a few prompts, and a text model is timed briefly"""

    def problems(self) -> list[str]:
        """Return one sentence for every option that is wrong."""
        needs = f"--patience {self.patience}: it counts evaluations during training; give --eval-every too"
        return [
            *super().problems(),
            *failed(
                (
                    self.eval_every is None or self.eval_every > 0,
                    f"--eval-every {self.eval_every}: at least 1 is needed",
                ),
                (self.patience is None or self.patience > 0, f"--patience {self.patience}: at least 1 is needed"),
                (self.patience is None or self.eval_every is not None, needs),
            ),
            *(problem for name in self.loggers() if (problem := _logger_problem(name))),
        ]

    def loggers(self) -> list[str]:
        """Return the names in --log."""
        return [name.strip() for name in self.log.split(",")] if self.log is not None else []


def _logger_problem(name: str) -> str | None:
    if name not in LOGGERS:
        return f"--log {name}{nearest(name, LOGGERS)}: one of {', '.join(LOGGERS)} is needed"
    if find_spec(name) is None:
        return f"--log {name}: {name} is not installed; pip install {name}"
    return None


@dataclass(frozen=True, kw_only=True)
class AdapterOptions(Options):
    """LoRA, and the seed of a run."""

    adapter: Adapter = "lora"
    """kind of LoRA. rslora: scaled by alpha / sqrt(rank). dora: with a trained norm for every row of a weight. pissa and olora start from
    the main singular vectors, or from Q and R, of the weights. All are merged and saved alike"""
    rank: int = 8
    """LoRA rank"""
    alpha: float = 32.0
    """LoRA alpha; the adapters are scaled by alpha / rank"""
    dropout: float = 0.0
    """dropout on the inputs of the adapters"""
    seed: int = 0
    """seed for the data order, the adapters, dropout and the random criterion"""

    @property
    def order_seed(self) -> int:
        """Return the seed for the data order and dropout."""
        return self.seed

    def problems(self) -> list[str]:
        """Return one sentence for every option that is wrong."""
        return [
            *super().problems(),
            *failed(
                (self.rank > 0, f"--rank {self.rank}: at least 1 is needed"),
                (self.alpha > 0 and math.isfinite(self.alpha), f"--alpha {self.alpha}: a positive number is needed"),
                (0 <= self.dropout < 1, f"--dropout {self.dropout}: a fraction in [0, 1) is needed"),
                (0 <= self.seed < 2**32, f"--seed {self.seed}: a whole number from 0 to 2^32 - 1 is needed"),
            ),
        ]


@dataclass(frozen=True, kw_only=True)
class QuantizeOptions(Options):
    """Precision of the frozen weights during training."""

    needs_library: ClassVar[bool] = True

    quantize: Quantize = "none"
    """quantise the frozen weights under the adapters during training, which takes a quarter to an eighth of their memory: 8bit (LLM.int8)
    and 4bit (NF4 with double quantisation) use bitsandbytes, int8 uses torchao; the saved model is not quantised (extra `quant`)"""

    def problems(self) -> list[str]:
        """Return one sentence for every option that is wrong."""
        absent = missing_quantiser(self.quantize) if self.needs_library else None
        return [*super().problems(), *failed((absent is None, f"--quantize {self.quantize}: {absent}"))]


@cache
def _numbers(kind: type[Options]) -> dict[str, Any]:
    """Return option -> type of the options that take neither text nor a choice of words."""
    hints = get_type_hints(kind)
    return {
        one.name: hints[one.name]
        for one in fields(kind)
        if not (takes_text(hints[one.name]) or has_choices(hints[one.name]))
    }


def expanded(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that may be a path, with `~` expanded."""
    return {
        name: [at_home(each) for each in value] if isinstance(value, list) else at_home(value)
        for name, value in values.items()
        if name in PLACES
    }


def dashed(name: str) -> str:
    """Return the name of an option as it is written on the command line, without the leading dashes."""
    return name.replace("_", "-")


def as_typed(value: object) -> str:
    """Return the value of an option as it is written on the command line."""
    return value if isinstance(value, str) else json.dumps(value)


def rounding_problem(model: str, option: str, kind: str) -> str | None:
    """Return a sentence if the weights of a model cannot be quantised as they are loaded; None if they can."""
    if kind not in QUANTISERS or not (is_gguf(model) or parts(model)[1]):
        return None
    what = "a GGUF file is read" if is_gguf(model) else "an adapter is merged"
    return f"{option} {kind} --model {model}: {what} in 16 or 32 bits; leave {option} out, or prune a saved checkpoint"


def missing_quantiser(kind: str) -> str | None:
    """Return a sentence if the library for a kind of quantisation is not installed; None if it is, or none is needed."""
    library = QUANTISERS.get(kind)
    if library is None or find_spec(library) is not None:
        return None
    return f"{library} is not installed; pip install 'loraprune[quant]'"


def idle_options(options: Options, why: str, *names: str) -> list[str]:
    """Return one sentence for each of the options that is not at its default, which has no effect."""
    changed = [name for name in names if getattr(options, name) != getattr(type(options), name)]
    shown = {name: as_typed(getattr(options, name)) for name in changed}
    return [f"--{dashed(name)} {value} has no effect: {why}" for name, value in shown.items()]


def null_problems(kind: type[Options], values: Mapping[str, object]) -> dict[str, str]:
    """Return option -> sentence for every null in a YAML file where a value is needed, which the parser accepts."""
    return {
        one.name: f"--{dashed(one.name)} null: a value is needed; leave the line out for the default"
        for one in fields(kind)
        if one.name in values and values[one.name] is None and one.default is not None
    }


def read_values(kind: type[Options], values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return values with texts converted to the types of their options, and option -> sentence for those of a wrong type."""
    found = {name: os.fspath(value) if isinstance(value, os.PathLike) else value for name, value in values.items()}
    hints, wrong = get_type_hints(kind), null_problems(kind, values)
    for name, value in list(found.items()):
        if name not in wrong and value is not None:
            try:
                read = read_value(hints[name], value)
                found[name] = read if isinstance(value, str) else value
            except WrongValueError as error:
                wrong[name] = f"--{dashed(name)}{error}"
    return found, wrong


def failed(*checks: tuple[bool, str]) -> list[str]:
    """Return the messages of the checks that fail."""
    return [message for holds, message in checks if not holds]


def raise_all(problems: list[str]) -> None:
    """Raise one ConfigError that lists every problem."""
    if problems:
        raise ConfigError(*problems)


def at_least(*values: tuple[str, int, int]) -> list[str]:
    """Return a message for every (option, value, minimum) whose value is too small."""
    return [f"--{dashed(name)} {value}: at least {least} is needed" for name, value, least in values if value < least]
