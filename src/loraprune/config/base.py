"""Options that several commands share, each with its help text and its check.

Knows nothing about torch, so that `--help` answers at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib.util import find_spec
from typing import Any, ClassVar, Literal

from loraprune.errors import SECRET, ConfigError, nearest
from loraprune.runtime.hub import at_home, is_gguf, parts

Device = Literal["auto", "cpu", "cuda", "mps"]
Dtype = Literal["auto", "float32", "tf32", "bfloat16", "float16"]
Quantize = Literal["none", "8bit", "4bit", "int8"]
QUANTISERS = {"8bit": "bitsandbytes", "4bit": "bitsandbytes", "int8": "torchao"}
"""the library behind each"""
LOGGERS = ("tensorboard", "trackio", "wandb")
"""dashboards that a run can report to"""
TASKS = ("causal-lm", "image-classification", "masked-lm", "seq2seq", "sequence-classification")
"""what models are for; programs may register others"""
INPUTS = ("model", "models", "against", "data", "eval", "scores", "task_data")
"""options that may name a file or folder to read"""
PLACES = (*INPUTS, "output", "plots")
"""options that may name a path: `~` is the home folder in all of them"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Base of all options: checked as a whole when made, each part adding what it finds wrong."""

    def __post_init__(self) -> None:
        for name, value in expanded({one.name: getattr(self, one.name) for one in fields(self)}).items():
            object.__setattr__(self, name, value)
        raise_all(self.problems())

    def inputs(self) -> dict[str, str | None]:
        """Return what the options that may name a file to read are set to."""
        return {name: value for name in INPUTS if isinstance(value := getattr(self, name, None), str)}

    def problems(self) -> list[str]:
        """Return one sentence for every option that is wrong."""
        # Options are written to run.yaml and the model card.
        texts = {one.name: getattr(self, one.name) for one in fields(self) if isinstance(getattr(self, one.name), str)}
        return [
            f"--{name}: it holds a token or password; give a token in the variable HF_TOKEN, which is never written down"
            for name, text in texts.items()
            if SECRET.search(text)
        ]


@dataclass(frozen=True, kw_only=True)
class ModelOptions(Options):
    """Which model."""

    model: str
    """folder, hub id or .gguf file; BASE+ADAPTER merges a LoRA adapter of PEFT into its base first; `demo` ships with the package"""
    task: str | None = None
    """what the model is for: causal-lm, masked-lm, sequence-classification, ...; without it the head in its configuration
    decides, and for a model that is only pre-trained the columns of the data"""
    trust_remote_code: bool = False
    """dangerous: run modelling code that comes with the checkpoint"""

    def problems(self) -> list[str]:
        """Return one sentence for every option that is wrong."""
        return [*super().problems(), *failed((bool(self.model), "--model is empty: name a folder or a hub id"))]


@dataclass(frozen=True, kw_only=True)
class MachineOptions(Options):
    """Where and in which precision."""

    device: Device = "auto"
    """where to run"""
    dtype: Dtype = "auto"
    """precision of the weights; auto keeps the checkpoint's, but computes in float32 on a CPU that does not multiply bfloat16
    natively, and where the loss differs between the two; tf32 is float32 whose products are
    rounded while training (Ampere or later), float16 trains with a loss scale (GPUs only)"""


@dataclass(frozen=True, kw_only=True)
class BatchOptions(Options):
    """How much goes through the model at a time."""

    batch: int = 8
    """rows in a micro-batch, in each process if there are several"""
    length: int = 512
    """tokens in a row; capped at what the model was built for"""
    checkpointing: bool = False
    """recompute activations in the backward pass: less memory, more time"""

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
    """What a training run shows, and when it ends before its time."""

    eval_every: int | None = None
    """optimiser steps between two looks at the held-out data; without it only before and after training"""
    patience: int | None = None
    """end early once the model was no better at the held-out data this many times after the target, and keep the best; needs
    --eval-every"""
    log: str | None = None
    """send loss, ratio and what the looks measure to tensorboard, trackio or wandb (several with commas); TensorBoard's files go to
    OUTPUT-logs"""
    html: bool = True
    """write report.html too, for which models that write continue a few prompts, and models of texts are timed briefly"""

    def problems(self) -> list[str]:
        """Return one sentence for every option that is wrong."""
        needs = f"--patience {self.patience}: it counts looks at held-out data; give --eval-every too"
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
        return f"--log {name}: it is not installed; pip install {name}"
    return None


@dataclass(frozen=True, kw_only=True)
class AdapterOptions(Options):
    """LoRA, and the seed of a run."""

    rank: int = 8
    """rank of LoRA"""
    alpha: float = 32.0
    """LoRA is scaled by alpha / rank"""
    dropout: float = 0.0
    """dropout on the input of LoRA"""
    seed: int = 0
    """seed of data order, LoRA's start, dropout and the random criterion"""

    @property
    def order_seed(self) -> int:
        """Return the seed of the order of rows and of dropout."""
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
    """How the frozen weights are held while training."""

    needs_library: ClassVar[bool] = True

    quantize: Quantize = "none"
    """hold the frozen weights that carry LoRA in 8bit (LLM.int8) or 4bit (nf4, scales quantised too) of bitsandbytes, or in int8 of
    torchao, which takes a quarter to an eighth of their memory; the result is saved without (extra `quant`)"""

    def problems(self) -> list[str]:
        """Return one sentence for every option that is wrong."""
        absent = missing_quantiser(self.quantize) if self.needs_library else None
        return [*super().problems(), *failed((absent is None, f"--quantize {self.quantize}: {absent}"))]


def expanded(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of options with `~` expanded in those that may name a path."""
    return {
        name: [at_home(each) for each in value] if isinstance(value, list) else at_home(value)
        for name, value in values.items()
        if name in PLACES
    }


def rounding_problem(model: str, option: str, kind: str) -> str | None:
    """Say that the weights of a model cannot be quantised as they are loaded, None if they can."""
    if kind not in QUANTISERS or not (is_gguf(model) or parts(model)[1]):
        return None
    what = "a GGUF file is read" if is_gguf(model) else "an adapter is merged"
    return f"{option} {kind} --model {model}: {what} in 16 or 32 bits; leave {option} out, or prune a saved checkpoint"


def missing_quantiser(kind: str) -> str | None:
    """Say that the library behind a way to quantise is not installed, None if it is or none is needed."""
    library = QUANTISERS.get(kind)
    if library is None or find_spec(library) is not None:
        return None
    return f"{library} is not installed; pip install 'loraprune[quant]'"


def null_problems(kind: type[Options], values: Mapping[str, object]) -> dict[str, str]:
    """Return option -> sentence for every null of a YAML file where the option needs a value: the parser lets it through."""
    return {
        one.name: f"--{one.name} null: a value is needed; leave the line out for the default"
        for one in fields(kind)
        if one.name in values and values[one.name] is None and one.default is not None
    }


def failed(*checks: tuple[bool, str]) -> list[str]:
    """Return the messages of the checks that do not hold."""
    return [message for holds, message in checks if not holds]


def raise_all(problems: list[str]) -> None:
    """Raise one ConfigError that lists every problem."""
    if problems:
        raise ConfigError(*problems)


def at_least(*values: tuple[str, int, int]) -> list[str]:
    """Return a message for every (option, value, least) whose value is too small."""
    return [f"--{name} {value}: at least {least} is needed" for name, value, least in values if value < least]
