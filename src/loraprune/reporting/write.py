"""Write report.json, run.yaml, plan.json, scores.safetensors and the model card of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import yaml
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from loraprune.config.training import FinetuneConfig, PruneConfig, as_dict
from loraprune.reporting.card import model_card
from loraprune.reporting.report import NAME, Report


def write_folder(
    folder: Path,
    report: Report,
    config: PruneConfig | FinetuneConfig,
    *,
    scores: Mapping[str, Float[Tensor, " units"]] | None,
    history: Mapping[str, Float[Tensor, " units"]] | None = None,
) -> None:
    """Write these files into an output folder."""
    (folder / NAME).write_text(json.dumps(report.values, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    (folder / "run.yaml").write_text(yaml.safe_dump(as_dict(config), sort_keys=False), encoding="utf-8")
    (folder / "README.md").write_text(model_card(report, output=report.folder or config.output), encoding="utf-8")
    if scores is not None and report.plan:
        (folder / "plan.json").write_text(report.plan.to_json() + "\n", encoding="utf-8")
        save_file(dict(scores), folder / "scores.safetensors")
    if history:
        save_file(dict(history), folder / "scores_history.safetensors")
