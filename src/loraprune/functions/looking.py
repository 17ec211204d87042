"""`inspect` and `plan` as functions: they read a model's configuration, not its weights."""

from __future__ import annotations

from typing import Any

from loraprune.commands.inspect import inspect as inspect_by_options
from loraprune.commands.plan import predict
from loraprune.config.commands import InspectConfig, PlanConfig
from loraprune.config.in_python import spoken_in_python
from loraprune.functions.arguments import make_options, takes
from loraprune.functions.objects import Model, objects
from loraprune.functions.results import Inspection, Prediction


@takes(InspectConfig)
def inspect(model: Model, **options: Any) -> Inspection:
    """Show what can be pruned in a model: its family, groups, units, and the parameters of a unit.

    Args:
        model: A transformers model, the result of `prune`, a folder or a hub id; of a model in memory only the configuration is read.
        options: Options of `loraprune inspect`.

    Raises:
        UnsupportedModelError: if no family knows the model.
    """
    with objects() as named, spoken_in_python(options, InspectConfig):
        values = options | {"model": named.model("model", model, weights=False)}
        return Inspection.of(inspect_by_options(make_options(InspectConfig, values)).values)


@takes(PlanConfig)
def plan(
    model: Model,
    *,
    ratio: float = PlanConfig.ratio,
    parameters: str | None = PlanConfig.parameters,
    batch: int = PlanConfig.batch,
    length: int = PlanConfig.length,
    **options: Any,
) -> Prediction:
    """Predict the shapes, the size and the memory of a pruning run.

    Args:
        model: A transformers model, a folder, a hub id, or a well-known model such as "llama-7b"; only the configuration is read.
        ratio: Fraction of the prunable parameters to remove.
        parameters: Parameters that the whole model is to have, such as "600M"; replaces `ratio`.
        batch: Rows in a micro-batch of training.
        length: Tokens in a row.
        options: All other options of `loraprune plan`.

    Raises:
        PlanError: if the target cannot be reached.
    """
    values = {"ratio": ratio, "parameters": parameters, "batch": batch, "length": length, **options}
    with objects() as named, spoken_in_python(values, PlanConfig):
        values |= {"model": named.model("model", model, weights=False)}
        return Prediction.of(predict(make_options(PlanConfig, values)))
