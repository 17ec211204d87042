"""What encoder.py and vision.py share: one model pruned by several criteria over several seeds, beside plain LoRA fine-tuning.

Every finished run is written to benchmarks/results/accuracy_NAME.json at once, so that the same call goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from helpers.common import RESULTS, machine
from loraprune.config import recipes
from loraprune.config.training import FinetuneConfig, PruneConfig
from loraprune.pipeline import finetune, prune

BASELINE = "finetune"
PLACES = ("data", "eval", "device", "overwrite")
"""options that say where a run happens, not what it does"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a grid that both scripts have."""
    parser.add_argument("--criteria", nargs="+", default=["lora", "magnitude", "movement"],
                        help="criteria, and recipes by name")  # fmt: skip
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.5])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])


def grid(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield name and options of every run, seed by seed; a criterion runs in the paper's recipe."""
    for seed in options.seeds:
        yield BASELINE, {"seed": seed}
        for ratio in options.ratios:
            for name in options.criteria:
                chosen = (
                    recipes.recipe(name) if name in recipes.names() else recipes.recipe("paper") | {"criterion": name}
                )
                yield name, {**chosen, "ratio": ratio, "seed": seed}


def measure(
    name: str, model: Path, *, common: Mapping[str, Any], grid: Iterator[tuple[str, dict[str, Any]]], work: Path,
    pruning: Mapping[str, Any] | None = None, facts: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    """Run what is not in the result file yet; `common` goes to all runs, `pruning` to those that prune, `facts` to the file.

    Raises:
        SystemExit: if the file has results of other options.
    """
    path = RESULTS / f"accuracy_{name}.json"
    kept = {**common, **(pruning or {})}
    told = {"options": {key: kept[key] for key in sorted(kept) if key not in PLACES}, "model": model.name}
    told |= {"data": Path(common["data"].partition("=")[0]).name, "facts": dict(facts or {})}
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"cells": {}}
    if any(found.get(key, value) != value for key, value in told.items()):
        raise SystemExit(f"{path}: it has results of other options: give the same ones, or move it away")
    for run, own in grid:
        cell = f"{run} {own.get('ratio', 0.0)} seed {own['seed']}"
        if cell in found["cells"]:
            continue
        output = str(work / "run")
        shared = {**common, "model": str(model), "output": output, "html": False, "overwrite": Path(output).exists()}
        if run == BASELINE:
            finetune(FinetuneConfig(**shared, **own))
        else:
            prune(PruneConfig(**shared, **(pruning or {}), **own))
        report = json.loads((Path(output) / "report.json").read_text(encoding="utf-8"))
        quality = report[report["metric"]]
        figures = {key: quality.get(key) for key in ("dense", "pruned", "standard_error", "rows")}
        found["cells"][cell] = {
            "run": run, "ratio": own.get("ratio", 0.0), "seed": own["seed"], "metric": report["metric"], **figures,
            "parameters": report["parameters"], "ratio_reached": report.get("ratio_reached", 0.0),
            "trained_whole": report["trained_whole"],
        }  # fmt: skip
        values = {"machine": machine(), **told, "cells": found["cells"]}
        path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
        print(f"{name}: {cell}: dense {figures['dense']:.4f}, {figures['pruned']:.4f}", file=sys.stderr, flush=True)
