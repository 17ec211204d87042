"""`prune` and `finetune` as functions."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any, TypeVar

from transformers import PreTrainedModel

from loraprune import pipeline
from loraprune.config.base import Device, Dtype
from loraprune.config.in_python import spoken_in_python
from loraprune.config.training import FinetuneConfig, PruneConfig, TrainConfig
from loraprune.errors import ConfigError
from loraprune.functions.arguments import make_options, takes
from loraprune.functions.objects import Data, Model, Processing, objects
from loraprune.functions.results import Result
from loraprune.models.loading import from_pretrained
from loraprune.reporting.report import Report
from loraprune.runtime import launch

Kind = TypeVar("Kind", bound=TrainConfig)


@takes(PruneConfig)
def prune(  # noqa: D417, PLR0913
    model: Model,
    *,
    data: Data,
    tokenizer: Processing = None,
    eval: Data | None = None,
    output: str | os.PathLike[str] | None = None,
    ratio: float = PruneConfig.ratio,
    parameters: str | None = PruneConfig.parameters,
    steps: int | None = PruneConfig.steps,
    epochs: float = PruneConfig.epochs,
    rows: int | None = PruneConfig.rows,
    lr: float = PruneConfig.lr,
    batch: int = PruneConfig.batch,
    length: int = PruneConfig.length,
    rank: int = PruneConfig.rank,
    device: Device = PruneConfig.device,
    dtype: Dtype = PruneConfig.dtype,
    seed: int = PruneConfig.seed,
    overwrite: bool = PruneConfig.overwrite,
    **options: Any,
) -> Result:
    """Prune a model while fine-tuning it with LoRA; merge, verify and return the smaller model.

    A model in memory is never changed: it is written to a temporary folder, which needs as much disk as its weights, and the run
    works on a copy that it loads from there. The folder is below `tempfile.gettempdir()`, which the variable TMPDIR moves. The given
    model keeps its memory meanwhile, on a GPU too: pass a name, or move the model to the CPU, where that is too much.

    Args:
        model: A transformers model, a folder or hub id, or the result of an earlier call.
        data: What to train on: a `Dataset` or `DatasetDict`, a list of texts or of dicts such as {"instruction", "response"}, or a name
            as `--data` takes it. A list gives the same rows as a .jsonl file of it.
        tokenizer: The tokenizer, or the image processor, of a model in memory; with a name it replaces the one in the folder.
        eval: What to evaluate on, as `data`; without it a part of `data` that is not trained on.
        output: Folder to write, as `--output`; without it the folder is temporary and lasts as long as the result is referenced.
        options: All options of `loraprune prune`, also those without a place in the signature: the fields of `loraprune.PruneConfig`.

    Returns:
        The pruned model on the device of the given one (on the CPU for a name), the report, and `save(folder)`. With `sizes` these are of
        the recommended size, or of the largest if none is, and `sizes` of the result has the folders of all.

    Raises:
        LoraPruneError: for anything wrong with model, data or options; nothing is written then.
    """
    given = {
        "ratio": ratio, "parameters": parameters, "steps": steps, "epochs": epochs, "rows": rows, "lr": lr, "batch": batch,
        "length": length, "rank": rank, "device": device, "dtype": dtype, "seed": seed, "overwrite": overwrite, **options,
    }  # fmt: skip
    return _run(PruneConfig, pipeline.prune, model, tokenizer, {"data": data, "eval": eval}, output, given)


@takes(FinetuneConfig)
def finetune(  # noqa: D417, PLR0913
    model: Model,
    *,
    data: Data,
    tokenizer: Processing = None,
    eval: Data | None = None,
    output: str | os.PathLike[str] | None = None,
    steps: int | None = FinetuneConfig.steps,
    epochs: float = FinetuneConfig.epochs,
    rows: int | None = FinetuneConfig.rows,
    lr: float = FinetuneConfig.lr,
    batch: int = FinetuneConfig.batch,
    length: int = FinetuneConfig.length,
    rank: int = FinetuneConfig.rank,
    device: Device = FinetuneConfig.device,
    dtype: Dtype = FinetuneConfig.dtype,
    seed: int = FinetuneConfig.seed,
    overwrite: bool = FinetuneConfig.overwrite,
    **options: Any,
) -> Result:
    """Fine-tune a model with LoRA, merge, verify and return it: the baseline of every pruned model.

    A model in memory is never changed, as in `prune`; arguments, result and errors are those of `prune`, without the ones about removal.

    Args:
        model: A transformers model, a folder or hub id, or the result of an earlier call.
        data: What to train on.
        tokenizer: The tokenizer, or the image processor, of a model in memory.
        eval: What to evaluate on.
        output: Folder to write; without it a temporary one.
        options: All options of `loraprune finetune`: the fields of `loraprune.FinetuneConfig`.

    Raises:
        LoraPruneError: for anything wrong with model, data or options; nothing is written then.
    """
    given = {
        "steps": steps, "epochs": epochs, "rows": rows, "lr": lr, "batch": batch, "length": length, "rank": rank, "device": device,
        "dtype": dtype, "seed": seed, "overwrite": overwrite, **options,
    }  # fmt: skip
    return _run(FinetuneConfig, pipeline.finetune, model, tokenizer, {"data": data, "eval": eval}, output, given)


def _run(
    kind: type[Kind],
    run: Callable[[Kind], Report],
    model: Model,
    tokenizer: Processing,
    data: Mapping[str, Data | None],
    output: str | os.PathLike[str] | None,
    options: Mapping[str, Any],
) -> Result:
    """Do one run, in a temporary folder that is removed with its result if no output is given."""
    if isinstance(model, PreTrainedModel) and tokenizer is None:
        raise ConfigError(
            "tokenizer is missing: a model in memory has none; give the tokenizer or image processor that belongs to it"
        )
    if output is not None:
        return _result(kind, run, model, tokenizer, data, {**options, "output": os.fspath(output)})
    if options.get("resume") or launch.count() > 1:
        why = "resume=True continues from" if options.get("resume") else f"{launch.count()} processes write"
        raise ConfigError(f"output is missing: name the folder that {why}")
    room = mkdtemp(prefix="loraprune-")
    try:
        result = _result(kind, run, model, tokenizer, data, {**options, "output": os.path.join(room, "result")})
    except BaseException:
        rmtree(room, ignore_errors=True)
        raise
    weakref.finalize(result, rmtree, room, ignore_errors=True)
    return result


def _result(
    kind: type[Kind],
    run: Callable[[Kind], Report],
    model: Model,
    tokenizer: Processing,
    data: Mapping[str, Data | None],
    values: dict[str, Any],
) -> Result:
    """Do one run and load its result."""
    with objects() as named:
        with spoken_in_python(values, kind):
            values |= {"model": named.model("model", model, tokenizer)}
            values |= {name: named.data(name, each) for name, each in data.items() if each is not None}
            config = make_options(kind, values)
            report = run(config)
        folder = report.folder or config.output  # with several sizes, that of one of them
        saved: Any = from_pretrained(folder, trust_remote_code=config.trust_remote_code).eval()
    placed = saved.to(model.device) if isinstance(model, PreTrainedModel) else saved
    return Result(placed, report, Path(folder).absolute())
