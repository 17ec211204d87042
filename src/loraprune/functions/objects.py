"""Models and data that a caller passes, as objects or names: objects get a name, and a folder if they are read from files.

The caller's objects are only read.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any, TypeAlias

import datasets
from transformers import PreTrainedModel

from loraprune.config.base import Options
from loraprune.errors import CheckpointError, ConfigError
from loraprune.evaluation.tasks.base import Processor
from loraprune.functions.results import Result
from loraprune.models.adapters import carries_adapter
from loraprune.models.opening import quiet
from loraprune.runtime import launch
from loraprune.runtime.held import Held, holding
from loraprune.runtime.hub import at_home

Model: TypeAlias = str | os.PathLike[str] | PreTrainedModel | Result
"""a transformers model, a result of `prune` or `finetune`, a folder or a hub id"""
Data: TypeAlias = str | os.PathLike[str] | Sequence[str | Mapping[str, Any]] | datasets.Dataset | datasets.DatasetDict
"""a Dataset or DatasetDict, a list of texts or of rows, or a name as on the command line"""
Processing: TypeAlias = str | os.PathLike[str] | Processor | None
"""a tokenizer or image processor, its folder or hub id; None for the model's own"""


class Objects:
    """Names for what a call is given. Weights and tokenizers in memory are written to a folder that lasts as long as the call."""

    def __init__(self, room: Path) -> None:
        self._room = room
        self._models: dict[str, str] = {}
        self._processors: dict[str, str] = {}
        self._data: dict[str, Any] = {}
        self._named: list[tuple[object, str]] = []
        """objects with their names; the references keep an id from being used twice"""

    @property
    def held(self) -> Held:
        """Return the objects of the names."""
        return Held(self._models, self._processors, self._data)

    def model(
        self, argument: str, model: Model, processor: Processing = None, *, weights: bool = True, name: str = ""
    ) -> str:
        """Return the name of a model; `weights` False writes its configuration alone.

        Raises:
            ConfigError: if it is not a model, or cannot be saved.
        """
        if isinstance(model, str | os.PathLike):
            named = at_home(os.fspath(model))
            if processor is not None:
                self._processors[named] = self._processor(processor, self._place("processor"))
            return named
        self._check_alone(argument)
        if known := self._known(model):
            return known
        if isinstance(model, Result):
            label = self._label(model, name or "result in memory")
            self._models[label] = str(model.folder)
        elif isinstance(model, PreTrainedModel):
            label = self._label(model, name or f"{type(model).__name__} in memory")
            self._models[label] = self._write(argument, model, weights=weights)
        else:
            raise ConfigError(f"{argument}: {_what(model)}, where a transformers model, a folder or a hub id is needed")
        if processor is not None:
            place = Path(self._models[label]) if isinstance(model, PreTrainedModel) else self._place("processor")
            self._processors[label] = self._processor(processor, place)
        return label

    def data(self, argument: str, data: Data, *, name: str = "") -> str:
        """Return the name of data.

        Raises:
            ConfigError: if they are of a type that cannot be read.
        """
        if isinstance(data, str | os.PathLike):
            return at_home(os.fspath(data))
        self._check_alone(argument)
        if known := self._known(data):
            return known
        rows: Any = data
        if isinstance(data, datasets.DatasetDict):
            words = f"DatasetDict of {' and '.join(map(str, data))}"
        elif isinstance(data, datasets.Dataset):
            words = f"Dataset of {len(data)} rows"
        elif isinstance(data, Sequence):
            rows, words = list(data), f"list of {len(data)}"
            _check_list(argument, rows)
        else:
            raise ConfigError(
                f"{argument}: {_what(data)}, where a Dataset, a list of texts or dicts, or a name is needed; make a stream a list first"
            )
        label = self._label(data, name or f"{words} in memory")
        self._data[label] = rows
        return label

    def _known(self, thing: object) -> str | None:
        return next((name for other, name in self._named if other is thing), None)

    def _label(self, thing: object, words: str) -> str:
        taken, label, number = {name for _, name in self._named}, words, 1
        while label in taken:
            number += 1
            label = f"{words} ({number})"
        self._named.append((thing, label))
        return label

    def _check_alone(self, argument: str) -> None:
        """Refuse objects where several processes would each write and name their own."""
        if launch.count() > 1:
            raise ConfigError(
                f"{argument}: an object of one of {launch.count()} processes; give all of them the same name instead"
            )

    def _write(self, argument: str, model: PreTrainedModel, *, weights: bool) -> str:
        """Save a model without changing it."""
        if getattr(model.config, "quantization_config", None) is not None:
            raise ConfigError(
                f"{argument}: its weights are quantised already, and would be rounded a second time; load it in 16 or 32 bits, and give "
                "`quantize` to hold it in 8 or 4 bits"
            )
        if carries_adapter(model):
            raise ConfigError(
                f"{argument}: it carries an adapter; merge it first, with merge_and_unload() of its PeftModel"
            )
        folder = self._place("model")
        config = copy.deepcopy(model.config)
        config.architectures = [type(model).__name__]
        try:
            with quiet():
                if weights:
                    view: Any = copy.copy(model)  # shares the weights, not the settings, which saving writes to
                    view.config, view.generation_config = (
                        config,
                        copy.deepcopy(getattr(model, "generation_config", None)),
                    )
                    view.save_pretrained(folder)
                else:
                    config.save_pretrained(folder)
        except Exception as error:  # offloaded weights, a generation configuration that is no valid one, a full disk
            raise CheckpointError(
                f"{argument}: it cannot be saved ({type(error).__name__}: {error}); save it and give the folder"
            ) from error
        return str(folder)

    def _place(self, name: str) -> Path:
        """Return a new temporary folder."""
        return Path(mkdtemp(prefix=f"{name}-", dir=self._room))

    def _processor(self, processor: Any, folder: Path) -> str:
        if isinstance(processor, str | os.PathLike):
            return at_home(os.fspath(processor))
        if not isinstance(processor, Processor):
            raise ConfigError(
                f"tokenizer: {_what(processor)}, where a tokenizer, an image processor or the name of one is needed"
            )
        processor.save_pretrained(folder)
        return str(folder)


@contextmanager
def objects() -> Iterator[Objects]:
    """Give a call its names; they refer to the objects within the block."""
    with TemporaryDirectory(prefix="loraprune-", ignore_cleanup_errors=True) as room:
        made = Objects(Path(room))
        with holding(made.held):
            yield made


def _check_list(argument: str, rows: Sequence[Any]) -> None:
    if not rows:
        raise ConfigError(f"{argument}: the list is empty; give one that holds texts or rows")
    if all(isinstance(row, str) and os.path.exists(row) for row in rows):
        raise ConfigError(
            f"{argument}: the list holds names of files ({rows[0]!r}), where texts are needed; give one name, or a folder of files"
        )


def _what(thing: object) -> str:
    """Return the type of an object, for an error about it."""
    if isinstance(thing, Options):
        return f"a {type(thing).__name__}, which the functions of loraprune.pipeline and loraprune.commands take"
    return f"{'nothing' if thing is None else 'a ' + type(thing).__name__}"
