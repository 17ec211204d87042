"""Perplexity after pruning, by criterion, ratio and seed, beside the dense model and the dense model tuned by LoRA.

    python benchmarks/quality.py --model ../shared/models/llama-stories-3m --data ../shared/data/text/tinystories/train.jsonl

Every run is the command line's own; finished runs are kept in the result file, so that a stopped benchmark goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import common


def cells(options: argparse.Namespace) -> Iterator[tuple[str, list[str]]]:
    """Yield the name and the arguments of every run."""
    for seed in options.seeds:
        yield f"finetune seed {seed}", ["finetune", "--seed", str(seed)]
        for ratio in options.ratios:
            for criterion in options.criteria:
                arguments = ["prune", "--seed", str(seed), "--ratio", str(ratio), "--criterion", criterion]
                yield f"{criterion} {ratio} seed {seed}", arguments


def run(options: argparse.Namespace, arguments: list[str]) -> dict[str, Any]:
    """Carry out one run and return what its report says."""
    with tempfile.TemporaryDirectory() as folder:
        held_out = ["--eval", options.eval] if options.eval else []
        command = [
            sys.executable, "-m", "loraprune", *arguments, "--model", options.model, "--data", options.data, *held_out,
            "--output", str(Path(folder) / "out"), "--steps", str(options.steps), "--length", str(options.length),
            "--lr", str(options.lr), "--json",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(arguments)}: {done.stderr.strip()}")
    report = json.loads(done.stdout)
    protocol = report["perplexity"]["protocol"]
    protocol["source"] = Path(protocol["source"]).name  # a path would name the machine
    return {"perplexity": report["perplexity"]["pruned"], "dense": report["perplexity"]["dense"],
            "ratio_reached": report.get("ratio_reached", 0.0), "wall_seconds": report["wall_seconds"],
            "protocol": protocol}  # fmt: skip


def summary(runs: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return mean and spread over seeds, and the mean gap in log-perplexity to the dense model tuned as long."""
    by_cell: dict[str, list[dict[str, Any]]] = {}
    for name, values in runs.items():
        by_cell.setdefault(name.rsplit(" seed ", 1)[0], []).append(values)
    tuned = statistics.mean(math.log(values["perplexity"]) for values in by_cell.get("finetune", []))
    table = {}
    for cell, values in by_cell.items():
        found = [value["perplexity"] for value in values]
        table[cell] = {"mean": statistics.mean(found), "deviation": statistics.stdev(found) if len(found) > 1 else 0.0,
                       "seeds": len(found), "gap": statistics.mean(map(math.log, found)) - tuned,
                       "ratio_reached": values[0]["ratio_reached"], "dense": values[0]["dense"]}  # fmt: skip
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--data", default="stdlib")
    parser.add_argument("--eval")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--ratios", type=float, nargs="*", default=[0.5, 0.2])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--criteria", nargs="*", default=["lora", "gate", "magnitude", "random"])
    parser.add_argument("--name", help="name of the result file, by default the model's")
    options = parser.parse_args()
    name = "quality_" + (options.name or Path(options.model).name)
    path = common.RESULTS / f"{name}.json"
    kept = {key: value for key, value in vars(options).items() if key in ("steps", "length", "lr")}
    old = json.loads(path.read_text()) if path.exists() else {}
    runs = old.get("runs", {}) if old.get("options") == kept else {}
    for cell, arguments in cells(options):
        if cell not in runs:
            runs[cell] = run(options, arguments)
            print(f"{cell}: {runs[cell]['perplexity']:.3f}", flush=True)
            model, data = Path(options.model).name, Path(options.data).name
            common.write(name, {"model": model, "data": data, "options": kept, "table": summary(runs), "runs": runs})


if __name__ == "__main__":
    main()
