"""Another ratio planned from saved scores: does a plan from the scores of a run to one ratio serve a run to another?

    python benchmarks/saved_scores.py [--model demo --data stdlib]

For every seed and criterion a run to --first leaves its scores; then the dense model is pruned to --second with scores of its own
(`own`), with these (`saved`), and, as the control, with random ones (`random`). A finished run in --work is kept, so the same command
goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from helpers import common

from loraprune.config.training import PruneConfig
from loraprune.pipeline import prune

OPTIONS = ("model", "data", "eval", "steps", "batch", "length", "lr")
"""options of this script that are options of every run"""


def run(folder: Path, options: argparse.Namespace, **chosen: Any) -> Path:
    """Prune once, unless an earlier call did; return the folder."""
    if not (folder / "report.json").is_file():
        shared = {name: getattr(options, name) for name in OPTIONS}
        prune(PruneConfig(output=str(folder), overwrite=folder.exists(), html=False, **shared, **chosen))
    return folder


def perplexity(folder: Path) -> float:
    """Return what a run ended with."""
    found: float = json.loads((folder / "report.json").read_text(encoding="utf-8"))["perplexity"]["pruned"]
    return found


def compare(options: argparse.Namespace, criterion: str, seed: int) -> dict[str, float]:
    """Return the perplexity at the second ratio with own, saved and random scores."""
    work: Path = options.work / f"{criterion}-{seed}"
    work.mkdir(parents=True, exist_ok=True)
    first = run(work / "first", options, ratio=options.first, criterion=criterion, seed=seed)
    second: dict[str, Any] = {"ratio": options.second, "seed": seed}
    folders = {
        "own": run(work / "own", options, criterion=criterion, **second),
        "saved": run(work / "saved", options, criterion=criterion, scores=str(first / "scores.safetensors"), **second),
        "random": run(work / "random", options, criterion="random", **second),
    }
    return {name: perplexity(folder) for name, folder in folders.items()}


def parse() -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/saved_scores"))
    parser.add_argument("--model", default="demo")
    parser.add_argument("--data", default="stdlib")
    parser.add_argument("--eval")
    parser.add_argument("--first", type=float, default=0.5, help="ratio of the run whose scores are kept")
    parser.add_argument("--second", type=float, default=0.2, help="ratio that is planned from them")
    parser.add_argument("--criteria", nargs="+", default=["lora", "gate"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--name", default="saved_scores", help="name of the result file")
    return parser.parse_args()


def main() -> None:
    """Run everything that is not there yet and write the table."""
    options = parse()
    table = {}
    for criterion in options.criteria:
        runs = [compare(options, criterion, seed) for seed in options.seeds]
        table[criterion] = {
            name: {
                "values": values, "mean": statistics.fmean(values),
                "deviation": statistics.stdev(values) if len(values) > 1 else None,
            }
            for name in runs[0]
            for values in [[each[name] for each in runs]]
        }  # fmt: skip
        print(criterion, {name: round(each["mean"], 2) for name, each in table[criterion].items()}, flush=True)
    told = {name: getattr(options, name) for name in ("first", "second", "seeds", "steps", "batch", "length", "lr")}
    common.write(options.name, {"model": Path(options.model).name, "options": told, "perplexity": table})


if __name__ == "__main__":
    main()
