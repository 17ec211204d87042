"""Several sizes from one run (`--sizes`): what they take and how good they are beside single runs of the same sizes.

    python benchmarks/sizes.py [--model demo --data stdlib]

For every seed one run writes all sizes, and one run for each size has the same steps for itself alone. Both start in this process, one
after the other. A finished run in --work is kept, so the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from helpers import common

from loraprune.config.sizes import folder_of, in_percent
from loraprune.config.training import PruneConfig
from loraprune.pipeline import prune

OPTIONS = ("model", "data", "eval", "steps", "batch", "length", "lr")
"""options of this script that are options of every run"""
SECONDS = "benchmark_seconds.json"
"""file beside a run's folder: wall-clock and processor time of the whole run"""


def run(folder: Path, options: argparse.Namespace, **chosen: Any) -> dict[str, float]:
    """Prune once, unless an earlier call did; return its wall-clock and processor seconds."""
    place = folder.with_name(f"{folder.name}-{SECONDS}")
    if not place.is_file():
        shared = {name: getattr(options, name) for name in OPTIONS}
        wall, processor = time.perf_counter(), time.process_time()
        prune(PruneConfig(output=str(folder), overwrite=folder.exists(), html=False, **shared, **chosen))
        found = {"wall": time.perf_counter() - wall, "processor": time.process_time() - processor}
        place.write_text(json.dumps(found), encoding="utf-8")
    seconds: dict[str, float] = json.loads(place.read_text(encoding="utf-8"))
    return seconds


def perplexity(folder: Path) -> float:
    """Return what a run ended with."""
    found: float = json.loads((folder / "report.json").read_text(encoding="utf-8"))["perplexity"]["pruned"]
    return found


def compare(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Return perplexities and seconds of all sizes from one run, and of single runs."""
    work: Path = options.work / f"seed-{seed}"
    work.mkdir(parents=True, exist_ok=True)
    together = run(work / "together", options, sizes=list(options.sizes), seed=seed)
    alone = {size: run(work / f"alone-{folder_of(size)}", options, size=size, seed=seed) for size in options.sizes}
    longest = max(alone.values(), key=lambda seconds: seconds["wall"])
    return {
        "seed": seed,
        "perplexity": {
            in_percent(size): {
                "together": perplexity(work / "together" / folder_of(size)), "alone": perplexity(work / f"alone-{folder_of(size)}"),
            }
            for size in options.sizes
        },
        "seconds": {"together": together, "alone": {in_percent(size): seconds for size, seconds in alone.items()}},
        "times_one_run": {name: together[name] / longest[name] for name in together},
    }  # fmt: skip


def parse() -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/sizes"))
    parser.add_argument("--model", default="demo")
    parser.add_argument("--data", default="stdlib")
    parser.add_argument("--eval")
    parser.add_argument("--sizes", type=float, nargs="+", default=[0.9, 0.8, 0.6])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--name", default="sizes", help="name of the result file")
    return parser.parse_args()


def main() -> None:
    """Run everything that is not there yet and write the figures."""
    options = parse()
    runs = [compare(options, seed) for seed in options.seeds]
    for name in ("wall", "processor"):
        print(
            f"{name} time of all sizes, in single runs: {statistics.fmean(one['times_one_run'][name] for one in runs):.2f}"
        )
    told = {name: getattr(options, name) for name in ("sizes", "seeds", "steps", "batch", "length", "lr")}
    common.write(options.name, {"model": Path(options.model).name, "options": told, "runs": runs})


if __name__ == "__main__":
    main()
