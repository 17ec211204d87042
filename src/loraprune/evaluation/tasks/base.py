"""The interface of a task: data, and the functions that differ between models of text, images or pairs of texts.

Knows nothing about pruning.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

from jaxtyping import Shaped
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from loraprune.data import Columns, Rows
from loraprune.errors import ConfigError
from loraprune.evaluation.measurement import Measured
from loraprune.registry import Registry

Inputs: TypeAlias = Mapping[str, Any]
"""arguments of a model's forward; tensors are on the CPU and are moved to the model's device"""
Collate: TypeAlias = Callable[[Any], dict[str, Shaped[Tensor, "rows ..."]]]


@runtime_checkable
class Processor(Protocol):
    """The part of a tokenizer or an image processor that every task needs."""

    def save_pretrained(self, save_directory: Any) -> Any:
        """Write the processor into a folder."""


@dataclass(frozen=True, slots=True)
class Request:
    """The data and the model of a run."""

    model: str
    config: PreTrainedConfig
    data: str | None
    """training data; None only evaluates, on all of `eval`"""
    eval: str | None
    """evaluation data; None holds out a part of `data`"""
    length: int
    """maximum tokens in a row"""
    seed: int = 0
    trust_remote_code: bool = False
    columns: Columns = field(default_factory=dict)
    """names of the columns of the data"""


@dataclass(frozen=True, slots=True)
class Prepared:
    """Data of a run, ready for the Trainer, and the parts of config.json that depend on them."""

    train: Rows | None
    """None where nothing is trained"""
    held_out: Rows
    collator: Collate
    """features of rows -> model inputs and `labels`"""
    processor: Processor
    values: Mapping[str, Any] = field(default_factory=dict)
    """keys of config.json that depend on the data, such as num_labels"""

    @property
    def training(self) -> Rows:
        """Return the training rows of a run that trains."""
        assert self.train is not None
        return self.train


Predictions: TypeAlias = Callable[
    [Shaped[Tensor, "*places classes"], Shaped[Tensor, "*places"]], Shaped[Tensor, "targets classes"]
]
"""a model's outputs at every position (or once for a row) and the labels -> the outputs at the positions of targets"""


@dataclass(frozen=True, slots=True)
class Task:
    """One kind of job."""

    name: str
    """as `--task` names it"""
    head: str
    """the Auto class of transformers that has the right head"""
    prepare: Callable[[Request], Prepared]
    """read, encode and hold out data; called before weights are loaded"""
    evaluate: Callable[[PreTrainedModel, Prepared, int], Measured]
    """evaluate a model on the held-out rows, with a batch size"""
    probe: Callable[[PreTrainedConfig, int, int], Inputs]
    """inputs with a number of rows and of tokens (images have their model's size) drawn by a fixed seed, on which masked, sliced and
    reloaded model are compared, and which are timed"""
    predictions: Predictions
    """the logits that the loss compares with the labels, for distillation"""
    processor: Callable[[Request], Processor]
    """load the tokenizer or image processor, and check that it fits the model"""
    read: Callable[[str, str, Columns], object]
    """read the part `train` or `held_out` of a source without a model; only its errors are used: those with which
    `prepare` would fail on"""
    pipeline: str | None = None
    """`pipeline_tag` of the hub, under which it lists the model"""
    columns: tuple[str, ...] = ()
    """columns of data that select this task for a model that is only pre-trained"""
    unit: Literal["tokens", "images"] = "tokens"
    """unit of the throughput"""
    counts_targets: bool = False
    """whether the model's own loss takes the number of targets of an optimiser step, as those of causal language models do"""
    new: Callable[[str], bool] | None = None
    """whether a checkpoint may lack a parameter of this name: one of a head, which is then initialised and fully trained"""


tasks: Registry[Task] = Registry("task", ConfigError)


def register_task(task: Task) -> Task:
    """Register a task."""
    tasks.add(task.name, task)
    return task
