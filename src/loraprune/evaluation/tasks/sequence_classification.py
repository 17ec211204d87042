"""Classes of texts, or numbers for them: a text or a pair of texts with a `label` in every row, GLUE's nine tasks by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor
from transformers import DataCollatorWithPadding, PreTrainedModel

from loraprune.data import Columns, check_apart, labelled, naming, open_source
from loraprune.data.labelled import Labelled
from loraprune.errors import ConfigError, NumericsError
from loraprune.evaluation.batches import by_length
from loraprune.evaluation.measurement import Measured
from loraprune.evaluation.metrics import METRICS, RESAMPLES, standard_error
from loraprune.evaluation.tasks.base import Prepared, Request, Task, register_task
from loraprune.evaluation.tasks.labelled_rows import LabelledRows, encode_labelled
from loraprune.evaluation.tasks.text import fit_length, fitting_tokenizer, padded_tokens
from loraprune.models.auto_classes import find_head
from loraprune.models.modes import evaluation_mode
from loraprune.runtime.progress import shown

HEAD = "AutoModelForSequenceClassification"
HELD_OUT_SHARE = 10
"""one row in so many is held out where the source has no split for it"""
REGRESSION, MULTI_LABEL = "regression", "multi_label_classification"
PADDING = "pad_token_id"


def prepare(request: Request) -> Prepared:
    """Read labelled texts; the labels determine the head, unless the model already has one.

    Raises:
        ConfigError: if the model predicts several labels at once.
    """
    if request.config.problem_type == MULTI_LABEL and find_head(request.config) == HEAD:
        raise ConfigError(
            f"--model {request.model}: problem_type in its config.json is {MULTI_LABEL!r}, and only one label a text is trained and "
            "measured; prune it in your own Trainer, as docs/trainer.md shows"
        )
    tokenizer = fitting_tokenizer(request)
    length = fit_length(request)
    train, held_out = _read(request)
    with naming("--data"):
        values = _head_values(request, train)
    regression = values["problem_type"] == REGRESSION
    metrics = held_out.metrics or (("pearson", "spearman") if regression else ("accuracy",))

    def encode(data: Labelled) -> LabelledRows:
        names = list(values["id2label"].values())
        labels = labelled.numbers(data.examples) if regression else labelled.class_numbers(data.examples, names)
        return encode_labelled(data, labels, tokenizer, length=length, metrics=metrics)

    if request.config.pad_token_id is None:
        values = {**values, PADDING: tokenizer.pad_token_id}  # decoders find the last token of a row by it
    rows = encode(train) if train is not None else None
    return Prepared(rows, encode(held_out), DataCollatorWithPadding(tokenizer), tokenizer, values)


def _read(request: Request) -> tuple[Labelled | None, Labelled]:
    """Return the examples for training and for evaluation."""
    if request.data is None:
        assert request.eval is not None
        with naming("--data"):
            return None, labelled.make_labelled(open_source(request.eval, request.columns).read("held_out"))
    with naming("--data"):
        source = open_source(request.data, request.columns)
        train = labelled.make_labelled(source.read("train"))
        if request.eval is None and "held_out" not in source.splits:
            return labelled.hold_out(train, HELD_OUT_SHARE)
    with naming("--eval" if request.eval else "--data"):
        other = open_source(request.eval, request.columns) if request.eval else source
        check_apart(request.data, source, request.eval or request.data, other=other)
        return train, labelled.make_labelled(other.read("held_out"))


def _head_values(request: Request, train: Labelled | None) -> dict[str, Any]:
    """Return the keys of config.json for the head: the model's if its head fits the data, else those of the labels."""
    config = request.config
    has_head = find_head(config) == HEAD
    count = config.num_labels or 0
    own: dict[str, Any] = {"id2label": dict(config.id2label or {}), "problem_type": config.problem_type}
    if has_head and count == 1:
        return own | {"problem_type": REGRESSION}
    if train is None:
        if not has_head:
            raise ConfigError(
                f"--model {request.model}: it has no head for classes yet: tune it on labelled data first"
            )
        return own
    if not train.names and (train.metrics[:1] == ("pearson",) or labelled.is_regression(train.examples)):
        return {"id2label": {0: "value"}, "label2id": {"value": 0}, "problem_type": REGRESSION}
    names = train.names or labelled.class_names(train.examples)
    if has_head and len(names) <= count:
        return own  # whether the labels are the model's shows when they are numbered
    return {
        "id2label": dict(enumerate(names)), "label2id": {name: place for place, name in enumerate(names)},
        "problem_type": "single_label_classification",
    }  # fmt: skip


def evaluate(model: PreTrainedModel, prepared: Prepared, batch: int) -> Measured:
    """Measure the data set's metrics on all held-out rows.

    Raises:
        NumericsError: if a logit is NaN or infinite.
    """
    rows = prepared.held_out
    assert isinstance(rows, LabelledRows)
    regression = model.config.problem_type == REGRESSION
    found = np.empty(len(rows), np.float64)
    with evaluation_mode(model):
        for places in shown(by_length([len(row) for row in rows.tokens()], batch), "evaluating"):
            features = [rows[place] for place in places]
            inputs = {name: value.to(model.device) for name, value in prepared.collator(features).items()}
            inputs.pop("labels")
            logits = model(**inputs).logits.float()
            if not torch.isfinite(logits).all():
                raise NumericsError(
                    f"row {min(places)} or one of its length: a logit is NaN or infinite: evaluate in float32"
                )
            found[places] = (logits[:, 0] if regression else logits.argmax(-1)).tolist()
    labels = np.array([row["label"] for row in rows.rows], np.float64)
    main, *others = rows.metrics
    protocol = {
        **rows.protocol, "batch": batch, "dtype": str(model.dtype).removeprefix("torch."),
        "standard_error": f"bootstrap, {RESAMPLES} draws",
    }  # fmt: skip
    return Measured(
        main, METRICS[main](found, labels), "higher", standard_error(main, found, labels), {"rows": len(rows)}, protocol,
        {name: METRICS[name](found, labels) for name in others},
        tuple((float(right), 1) for right in found == labels) if main == "accuracy" else (),
    )  # fmt: skip


def predictions(
    logits: Shaped[Tensor, "batch classes"], labels: Shaped[Tensor, " batch"]
) -> Shaped[Tensor, "batch classes"]:
    """Return the logits of every row."""
    return logits


HEAD_PARTS = (
    "classifier",
    "pre_classifier",
    "score",
    "classification_head",
    "summary",
    "sequence_summary",
    "head",
    "pooler",
)
"""names that transformers' classes give to what they put on top of a backbone; checkpoints of masked language models lack poolers"""


def is_head(name: str) -> bool:
    """Return whether a parameter belongs to the head, or to the pooling before it."""
    return not set(name.split(".")[:2]).isdisjoint(HEAD_PARTS)


def read(source: str, part: str, columns: Columns) -> object:
    """Read labelled texts."""
    return labelled.make_labelled(open_source(source, columns).read(part))


register_task(
    Task(
        "sequence-classification", HEAD, prepare, evaluate, padded_tokens, predictions, fitting_tokenizer, read,
        pipeline="text-classification",
        columns=("label",), new=is_head,
    )
)  # fmt: skip
