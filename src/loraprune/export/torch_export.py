"""`torch`: the graph of torch.export in one .pt2 file, for any batch and number of tokens, without transformers.

Source: https://docs.pytorch.org/docs/stable/export.html
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor

from loraprune.evaluation.precision import difference, logits_of
from loraprune.evaluation.tasks import probe_of
from loraprune.export.base import Format, Source, formats, save_companions
from loraprune.export.graphs import quiet_tracing, trace_logits
from loraprune.pruning.verify import check_difference

NAME = "model.pt2"


def write(source: Source, folder: Path) -> dict[str, Any]:
    """Trace the logits, save them, and compare what is loaded on other sizes than were traced."""
    program, inputs = trace_logits(source.model)
    with quiet_tracing():
        torch.export.save(program, folder / NAME)
        loaded = torch.export.load(folder / NAME).module()
    probe = dict(probe_of(source.model))
    found = 0.0
    for resized in (inputs, {name: other_sizes(tensor) for name, tensor in inputs.items()}):
        with torch.no_grad():
            exported = loaded(resized).float()
        found = max(found, difference(logits_of(source.model, probe | resized), exported))
    save_companions(source, folder)
    return {
        "verification": {"source_vs_exported": check_difference("model and .pt2 file", found, torch.float32)},
        "verified_by": f"torch {torch.__version__}, two batches of different sizes",
        "inputs": {name: list(tensor.shape) for name, tensor in inputs.items()},
        "load": f"torch.export.load('{NAME}').module()({{{', '.join(f'{name!r}: ...' for name in inputs)}}})",
    }


def other_sizes(tensor: Shaped[Tensor, "rows ..."]) -> Shaped[Tensor, "more ..."]:
    """Return inputs with one row more, and fewer tokens."""
    rows = torch.cat([tensor, tensor[:1]])
    return rows[:, : rows.shape[1] // 2] if rows.ndim == 2 else rows


formats.add("torch", Format(write, any_task=True))
