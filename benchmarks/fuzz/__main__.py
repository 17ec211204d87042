"""Bad input: damaged models, plans, runs, grids, scores, texts and options through every command.

python -m benchmarks.fuzz [--cases 560] [--seed 0]

Every case is made anew from its number and the seed. Results go to benchmarks/results/bad_inputs.json.
"""

from __future__ import annotations

import argparse
import os
import sys

os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"

from benchmarks.common import write
from benchmarks.fuzz.run import Outcome, run


def main() -> int:
    """Run all cases, print those that do not hold, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=560)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    def report(number: int, one: Outcome) -> None:
        if one.lost:
            print(f"{number}: {one.command}, {one.kind}: {one.damage}: {one.lost}: {one.error}", flush=True)

    result = run(options.cases, options.seed, report)
    write("bad_inputs", result)
    print({name: result[name] for name in ("cases", "refused", "still_good", "lost")})
    return int(result["lost"] > 0)


if __name__ == "__main__":
    sys.exit(main())
