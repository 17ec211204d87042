"""Two processes against one at the same rows a step: the same plan, and how far the weights are apart.

    python -m benchmarks.processes

Every run prunes llama-stories-260k (or --model) to 50 % by the command line, on CPUs with gloo. DDP cuts the model while it trains, FSDP2
masks it and cuts at the end. The control lets each process keep the sums that its own rows give.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.helpers import common
from safetensors.torch import load_file
from tests.runtime.distributed.processes import FSDP2, run

from loraprune import cli
from loraprune.plan import Plan
from loraprune.scoring.scorers import gate

LAUNCHES: Mapping[str, Mapping[str, str]] = {"DDP": {}, "FSDP2": FSDP2}
CRITERIA = ("lora", "gate")
BATCH = 8


def keep_own_sums() -> None:
    """Take the adding up out of the gate criterion."""
    gate.add_up = dict


def prune(
    options: Sequence[str],
    output: Path,
    *,
    count: int,
    launcher: Mapping[str, str] | None = None,
    prepare: Callable[[], None] = lambda: None,
) -> None:
    """Carry out one run; the rows of a step are shared among its processes."""

    def work(rank: int) -> int:
        prepare()
        return cli.main(["prune", *options, "--output", str(output), "--batch", str(BATCH // count)])

    ended = run(work, output.parent, count=count, launcher=launcher)
    assert not any(ended.codes), ended.stderr


def compared(one: Path, two: Path) -> dict[str, Any]:
    """Return how two results differ: units kept by one alone, weights where the plans agree."""
    plans = [Plan.read(folder).kept for folder in (one, two)]
    other = sum(len(set(kept) - set(plans[1][name])) for name, kept in plans[0].items())
    mine, theirs = (load_file(folder / "model.safetensors") for folder in (one, two))
    apart = max((value - theirs[name]).abs().max().item() for name, value in mine.items()) if not other else None
    largest = max(value.abs().max().item() for value in mine.values())
    return {"units_kept": sum(map(len, plans[0].values())), "other_units": other, "largest_difference": apart,
            "largest_weight": largest}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(common.SHARED / "models" / "llama-stories-260k"))
    parser.add_argument("--data", default=str(common.SHARED / "data" / "text" / "tinystories" / "valid.jsonl"))
    parser.add_argument("--steps", type=int, default=12)
    given = parser.parse_args()
    shared = ["--model", given.model, "--data", given.data, "--steps", str(given.steps), "--rows", "128", "--length", "64",
              "--lr", "1e-3", "--dropout", "0", "--device", "cpu", "--html", "false", "--ratio", "0.5"]  # fmt: skip
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for criterion in CRITERIA:
            options, one = [*shared, "--criterion", criterion], Path(folder) / criterion
            prune(options, one, count=1)
            for name, launcher in LAUNCHES.items():
                two = Path(folder) / f"{criterion}-{name}"
                prune(options, two, count=2, launcher=launcher)
                rows.append({"criterion": criterion, "launch": name, **compared(one, two)})
                print(rows[-1], flush=True)
        two = Path(folder) / "control"
        prune([*shared, "--criterion", "gate"], two, count=2, prepare=keep_own_sums)
        rows.append({"criterion": "gate", "launch": "DDP, sums not added up", **compared(Path(folder) / "gate", two)})
        print(rows[-1], flush=True)
    common.write("processes", {"steps": given.steps, "batch": BATCH, "model": Path(given.model).name, "rows": rows})


if __name__ == "__main__":
    main()
