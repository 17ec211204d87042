"""`torchao`: 8-bit weights in safetensors, which transformers loads where torchao is installed.

Source: torchao 0.18 and `TorchAoConfig` of transformers. Weights of linear layers have 8 bits and a scale a row; embeddings stay.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import PreTrainedModel, TorchAoConfig

from loraprune.config.export import QUANTIZATIONS
from loraprune.errors import NumericsError
from loraprune.evaluation.precision import difference, logits_of
from loraprune.evaluation.tasks import probe_of
from loraprune.export.base import Format, Source, formats, save_companions
from loraprune.export.graphs import quiet_tracing
from loraprune.models.auto_classes import auto_class, find_head
from loraprune.models.saving import cast_weights_
from loraprune.pruning.verify import check_difference
from loraprune.runtime.hub import is_gguf, parts


def write(source: Source, folder: Path) -> dict[str, Any]:
    """Quantise, save, load again, and compare."""
    from torchao.quantization import Int8WeightOnlyConfig

    probe = probe_of(source.model)
    exact = logits_of(source.model, probe)
    with stored(source) as place:
        quantized = _load(source, place, dtype=source.dtype, quantization_config=TorchAoConfig(Int8WeightOnlyConfig()))
    rounded = logits_of(quantized, probe)
    save_companions(source, folder)
    with quiet_tracing():
        quantized.save_pretrained(folder)
    again = logits_of(_load(source, str(folder), dtype="auto"), probe)
    cost = difference(exact, rounded)
    if not cost < 1:
        raise NumericsError(
            f"--format torchao: 8-bit weights change the logits by {cost:.1e} of the largest; nothing was saved"
        )
    return {
        "verification": {
            "source_vs_rounded": cost,
            "rounded_vs_reloaded": check_difference(
                "8-bit model and its file", difference(rounded, again), source.dtype
            ),
        },
        "verified_by": f"transformers with torchao {version('torchao')} on the CPU",
        "load": f"{find_head(source.config)}.from_pretrained(folder, device_map=...) of transformers, with torchao installed",
    }


@contextmanager
def stored(source: Source) -> Iterator[str]:
    """Give a folder or hub id whose weights are the source's: where an adapter was merged or a GGUF file read, a temporary folder."""
    if not (parts(source.name)[1] or is_gguf(source.name)):
        yield str(source.folder)
        return
    with TemporaryDirectory() as room, quiet_tracing():
        rounded = copy.deepcopy(source.model)
        cast_weights_(rounded, source.dtype)
        rounded.save_pretrained(room)
        yield room


def _load(source: Source, name: str, **options: Any) -> PreTrainedModel:
    with quiet_tracing():
        loaded: PreTrainedModel = auto_class(find_head(source.config)).from_pretrained(
            name, device_map="cpu", use_safetensors=True, trust_remote_code=source.options.trust_remote_code, **options
        )
    return loaded


formats.add("torchao", Format(write, needs=("torchao",), quantizations=QUANTIZATIONS["torchao"]))
