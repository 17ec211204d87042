"""Evaluate the dense and the pruned model of a run: quality, example texts and speed.

The two models are never in memory together; each is evaluated when it is loaded.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from loraprune.data import TokenRows
from loraprune.errors import LoraPruneError
from loraprune.evaluation.benchmark import Comparison, compare_speed, joined
from loraprune.evaluation.completions import complete, decode, draw_prompts
from loraprune.evaluation.measurement import Measured
from loraprune.evaluation.tasks import Prepared, Task
from loraprune.families import positions

LENGTH = 128
"""tokens in the timed prefill"""
NEW_TOKENS = 16
"""tokens generated for the decoding speed"""
REPEATS = 3

logger = logging.getLogger(__name__)


class Showcase:
    """Collects the figures of a run's models by name, and their example texts if requested."""

    def __init__(self, task: Task, data: Prepared, batch: int, *, wanted: bool) -> None:
        """Take the task and the held-out rows; only rows of text with targets of text give prompts, and only if `wanted`."""
        self.wanted = wanted
        self.measured: dict[str, Measured] = {}
        """name of a model -> its figures on all held-out rows"""
        self._task, self._data, self._batch = task, data, batch
        rows, processor = data.held_out, data.processor
        self.tokenizer = processor if isinstance(processor, PreTrainedTokenizerBase) else None
        self.prompts = (
            draw_prompts(rows, self.tokenizer) if wanted and self.tokenizer and isinstance(rows, TokenRows) else []
        )
        self._texts: dict[str, list[str]] = {}
        self._speed: Comparison | None = None

    def follow(self, task: Task, data: Prepared) -> None:
        """Evaluate the following models by another task on the same held-out text in other tokens, with the same prompts."""
        self._task, self._data = task, data
        before, processor = self.tokenizer, data.processor
        if before is not None and isinstance(processor, PreTrainedTokenizerBase):
            texts = [str(before.decode(prompt)) for prompt in self.prompts]  # with the special tokens
            self.prompts = [processor(text, add_special_tokens=False)["input_ids"] for text in texts]
            self.tokenizer = processor

    def evaluate(self, name: str, model: PreTrainedModel) -> None:
        """Evaluate a model on the held-out rows."""
        self.measured[name] = self._task.evaluate(model, self._data, self._batch)

    def write(self, name: str, model: PreTrainedModel) -> None:
        """Complete the prompts with a model, if it can generate."""
        if self.tokenizer and self.prompts and model.can_generate():
            self._texts[name] = [complete(model, self.tokenizer, prompt) for prompt in self.prompts]

    def time(self, name: str, model: PreTrainedModel, folder: Path) -> None:
        """Measure size and speed of a model, once; what cannot be measured is logged and left out, as the run is finished by then."""
        if not self.wanted or (self._speed and name in self._speed.rows):
            return
        most = positions(model.config) or LENGTH
        try:
            measured = compare_speed(
                {name: model}, batches=(1,), length=min(LENGTH, most), new_tokens=min(NEW_TOKENS, most // 2),
                repeats=REPEATS, folders={name: folder} if folder.is_dir() else None,
            )  # fmt: skip
        except LoraPruneError as error:
            logger.info("speed is not measured: %s", error)
            return
        self._speed = joined(self._speed, measured) if self._speed else measured

    def to_json(self) -> dict[str, Any]:
        """Return the entries `examples` and `speed` of a report, if there are any."""
        found: dict[str, Any] = {}
        if self.tokenizer and len(self._texts) > 1:
            texts = [dict(zip(self._texts, pair, strict=True)) for pair in zip(*self._texts.values(), strict=True)]
            prompts = [decode(self.tokenizer, prompt) for prompt in self.prompts]
            found["examples"] = [{"prompt": prompt, **text} for prompt, text in zip(prompts, texts, strict=True)]
        if self._speed and len(self._speed.rows) > 1:
            found["speed"] = self._speed.to_json()
        return found
