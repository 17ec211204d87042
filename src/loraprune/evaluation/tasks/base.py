"""What a task is: data, and the few functions in which jobs for models of text, images or pairs of texts differ.

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
"""arguments of a model's forward; tensors lie on the CPU and go to the model's device"""
Collate: TypeAlias = Callable[[Any], dict[str, Shaped[Tensor, "rows ..."]]]


@runtime_checkable
class Processor(Protocol):
    """A tokenizer or an image processor, as far as every task needs it."""

    def save_pretrained(self, save_directory: Any) -> Any:
        """Write it into a folder."""


@dataclass(frozen=True, slots=True)
class Request:
    """Which data a run asks for, and for which model."""

    model: str
    config: PreTrainedConfig
    data: str | None
    """what to train on; None only evaluates, on all of `eval`"""
    eval: str | None
    """what to evaluate on; None holds a part of `data` out"""
    length: int
    """tokens in a row, at most"""
    seed: int = 0
    trust_remote_code: bool = False
    columns: Columns = field(default_factory=dict)
    """which columns of the data are meant"""


@dataclass(frozen=True, slots=True)
class Prepared:
    """Data of a run, ready for the Trainer, and what they say about the model."""

    train: Rows | None
    """None where nothing is trained"""
    held_out: Rows
    collator: Collate
    """features of rows -> model inputs and `labels`"""
    processor: Processor
    values: Mapping[str, Any] = field(default_factory=dict)
    """keys of config.json that the data decide, such as num_labels"""

    @property
    def training(self) -> Rows:
        """Return the rows to train on, of a run that trains."""
        assert self.train is not None
        return self.train


Predictions: TypeAlias = Callable[
    [Shaped[Tensor, "*places classes"], Shaped[Tensor, "*places"]], Shaped[Tensor, "targets classes"]
]
"""what a model gives at every place (or once for a row) and the labels -> the same at the places that are to be learnt"""


@dataclass(frozen=True, slots=True)
class Task:
    """One kind of job."""

    name: str
    """as `--task` names it"""
    head: str
    """the Auto class of transformers that has the right head"""
    prepare: Callable[[Request], Prepared]
    """read, encode and hold out data; called before the weights are loaded"""
    evaluate: Callable[[PreTrainedModel, Prepared, int], Measured]
    """measure a model on the held-out rows, so many at a time"""
    probe: Callable[[PreTrainedConfig, int, int], Inputs]
    """inputs of so many rows and so many tokens (images have a size of their own) drawn by a fixed seed: what masked, sliced and
    reloaded model are compared on, and what is timed"""
    predictions: Predictions
    """what the loss compares with the labels, by which a model learns from the dense one"""
    processor: Callable[[Request], Processor]
    """load the tokenizer or image processor, and check that it fits the model"""
    read: Callable[[str, str, Columns], object]
    """read the part `train` or `held_out` of a source and the columns that are meant, without a model; only its errors count: what
    `prepare` would fail on"""
    pipeline: str | None = None
    """`pipeline_tag` of the hub, by which it lists the model"""
    columns: tuple[str, ...] = ()
    """columns of data that make a model that is only pre-trained one of this task"""
    unit: Literal["tokens", "images"] = "tokens"
    """what throughput counts"""
    counts_targets: bool = False
    """whether the model's own loss takes the number of targets of an optimiser step, as those of causal language models do"""
    new: Callable[[str], bool] | None = None
    """whether a checkpoint may lack a parameter of this name: one of a head, which then starts anew and is trained whole"""


tasks: Registry[Task] = Registry("task", ConfigError)


def register_task(task: Task) -> Task:
    """Make a task known."""
    tasks.add(task.name, task)
    return task
