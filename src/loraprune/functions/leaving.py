"""`export` as a function."""

from __future__ import annotations

import os
from typing import Any

from loraprune.config.export import ExportConfig
from loraprune.config.in_python import spoken_in_python
from loraprune.export.run import export as export_by_options
from loraprune.functions.arguments import make_options, takes
from loraprune.functions.objects import Data, Model, Processing, objects
from loraprune.functions.results import Exported
from loraprune.models.opening import load_tokenizer


@takes(ExportConfig)
def export(
    model: Model,
    *,
    output: str | os.PathLike[str],
    format: str = ExportConfig.format,
    quantization: str | None = ExportConfig.quantization,
    data: Data | None = None,
    tokenizer: Processing = None,
    overwrite: bool = ExportConfig.overwrite,
    **options: Any,
) -> Exported:
    """Write a model in another format and check it by loading it.

    Args:
        model: A transformers model, the result of `prune`, a folder or a hub id. A model in memory is not changed.
        output: Folder to write; it appears once it has been verified.
        format: The format: gguf, onnx, torch, torchao, safetensors or padded.
        quantization: Precision of the weights, one of the format's.
        data: Labelled rows to measure an int8 graph of ONNX on, beside the float32 graph.
        tokenizer: The tokenizer, or the image processor, of a model in memory.
        overwrite: Whether to replace `output` if a run wrote it.
        options: All other options of `loraprune export`.

    Raises:
        LoraPruneError: for anything wrong with model or options, or a format that cannot hold the model; nothing is written then.
    """
    values: dict[str, Any] = {
        "output": output, "format": format, "quantization": quantization, "overwrite": overwrite, **options
    }  # fmt: skip
    with objects() as named, spoken_in_python(values, ExportConfig):
        if isinstance(tokenizer, str | os.PathLike):
            tokenizer = load_tokenizer(os.fspath(tokenizer))
        values |= {"model": named.model("model", model, tokenizer)}
        values |= {"data": named.data("data", data)} if data is not None else {}
        return Exported.of(export_by_options(make_options(ExportConfig, values)).values)
