"""What the tests of sparsity share: a short run, what it leaves, and a sparsifier that has learnt something."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file
from torch import Tensor

from loraprune import LoRAPruneConfig, PruneConfig, pipeline
from loraprune.models.adapters import projection
from loraprune.pruning.sparsity.sparsifier import Sparsifier, weight_criterion
from loraprune.scoring.scorers.elementwise import tiles
from loraprune.scoring.scorers.saliency import saliency_rows
from tests.tiny import tiny_model, tokens, with_lora

SHORT: dict[str, Any] = {"steps": 8, "batch": 4, "length": 32, "lr": 1e-3, "rank": 4, "device": "cpu",
                         "html": False}  # fmt: skip


def run(inputs: Path, output: Path, **changes: Any) -> dict[str, Any]:
    """Prune and return the report."""
    paths = {"model": str(inputs / "model"), "data": str(inputs / "text.txt"), "output": str(output)}
    pipeline.prune(PruneConfig(**(paths | SHORT | {"sparsity": "2:4"} | changes)))
    values: dict[str, Any] = json.loads((output / "report.json").read_text(encoding="utf-8"))
    return values


def saved(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Return the prunable projections of a folder, read without torch."""
    return {name: t for name, t in load_file(folder / "model.safetensors").items() if "_proj." in name}


def sparsifier(**changes: Any) -> Sparsifier:
    """Return a sparsifier on a tiny model that has been through one backward pass."""
    settings = LoRAPruneConfig(**({"sparsity": "2:4", "rank": 4, "dropout": 0.0} | changes))
    result = Sparsifier(with_lora(tiny_model("llama")), settings)
    learn(result)
    return result


def learn(result: Sparsifier, *, seed: int = 0) -> None:
    """Give the factors the gradients of one batch."""
    ids = tokens(seed=seed)
    result.model.zero_grad()
    result.model(input_ids=ids, labels=ids, use_cache=False).loss.backward()


def saliencies(result: Sparsifier, path: str) -> Tensor:
    """Return the saliencies of a projection for the present gradients."""
    proj = projection(result.model, path)
    rows = saliency_rows(weight_criterion(result.config), proj, torch.Generator())
    return torch.cat([saliency for _, saliency in tiles(proj, rows, power=2)])
