"""Does the paper's criterion hold under other adapters? Perplexity at 50 % by `lora`, `magnitude` and `random` under each.

    python benchmarks/adapters.py [--seeds 0 1 2]

Every cell is one run by the published method. Eq 9 estimates the gradient of W from those of A and B, whose start and scale the
adapters change: the criterion holds where it beats `random`, the control, and `magnitude`, which reads no gradient. A finished run in
--work is kept, so the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from helpers import common

from loraprune.config.recipes import recipe
from loraprune.config.training import PruneConfig
from loraprune.pipeline import prune

ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {}, "rslora": {"adapter": "rslora"}, "dora": {"adapter": "dora"}, "pissa": {"adapter": "pissa"},
    "olora": {"adapter": "olora"}, "lora+": {"lora_plus": 4.0},
}  # fmt: skip
"""column of the table -> options"""
CRITERIA = ("lora", "magnitude", "random")
OPTIONS = ("model", "data", "eval", "ratio", "steps", "batch", "length", "lr", "device")
"""options of this script that are options of every run"""


def perplexity(options: argparse.Namespace, adapter: str, criterion: str, seed: int) -> float:
    """Prune once, unless an earlier call did; return the perplexity."""
    folder: Path = options.work / f"{adapter}-{criterion}-{seed}"
    if not (folder / "report.json").is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        shared = {name: getattr(options, name) for name in OPTIONS}
        chosen = recipe("paper") | ADAPTERS[adapter] | {"criterion": criterion, "seed": seed}
        prune(PruneConfig(output=str(folder), overwrite=folder.exists(), html=False, **(chosen | shared)))
    found: float = json.loads((folder / "report.json").read_text(encoding="utf-8"))["perplexity"]["pruned"]
    return found


def parse() -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    texts = common.SHARED / "data" / "text" / "tinystories"
    parser.add_argument("--work", type=Path, default=Path("build/adapters"))
    parser.add_argument("--model", default=str(common.SHARED / "models" / "llama-stories-260k"))
    parser.add_argument("--data", default=str(texts / "train.jsonl"))
    parser.add_argument("--eval", default=str(texts / "valid.jsonl"))
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--name", default="adapters", help="name of the result file")
    return parser.parse_args()


def main() -> None:
    """Run everything that is not there yet and write the table."""
    options, table = parse(), {}
    for adapter in ADAPTERS:
        table[adapter] = {}
        for criterion in CRITERIA:
            values = [perplexity(options, adapter, criterion, seed) for seed in options.seeds]
            deviation = statistics.stdev(values) if len(values) > 1 else None
            table[adapter][criterion] = {"values": values, "mean": statistics.fmean(values), "deviation": deviation}
        print(adapter, {name: round(each["mean"], 2) for name, each in table[adapter].items()}, flush=True)
    told = {name: getattr(options, name) for name in ("ratio", "seeds", "steps", "batch", "length", "lr")}
    common.write(options.name, {"model": Path(options.model).name, "options": told, "perplexity": table})


if __name__ == "__main__":
    main()
